/* What an engine is told: a table of 64-bit words, laid out as one of these structs.
 *
 * Everything that varies between problems is in the words, so one compiled engine serves them all. Addresses of
 * arrays are patched in by the runtime (parallel.h) for each chunk of images; all strides and offsets count
 * elements. fastconv/lowering/program.py holds the same names in the same order, and a test compares the two.
 */
#ifndef FASTCONV_PROGRAM_H
#define FASTCONV_PROGRAM_H

#include <stdint.h>

typedef void (*engine_fn)(const int64_t *words, int64_t begin, int64_t end, int64_t thread);

/* Words from the progress of a task to that of the next: each has a cache line. */
#define PROGRESS_STEP 8

enum { LINEAR, RELU, RELU6, SILU, GELU, HARDSWISH };

/* One stride-1 sum over taps. A convolution has one; a transposed convolution one for each output phase.
 * Output pixel (d, h, w) of n_d x n_h x n_w reads x + d*x_d + h*x_h + w*x_w + (an image offset for each k) and is
 * written to y + d*y_d + h*y_h + w*y_w. */
#define SUM_WORDS(W)                                                                                                   \
    W(task_begin)  /* tasks of the sums before this one */                                                             \
    W(taps)        /* length of the two tables: channels of a group times taps; taps alone if depthwise */             \
    W(x_offsets) W(x_most) /* image offset of each k, and the largest of them */                                       \
    W(w_offsets)   /* weight offset of each k */                                                                       \
    W(w_places)    /* where it goes in a panel, if a task packs the weights itself; then w_offsets rise in a K block */ \
    W(w) W(w_group) W(w_block) /* weights of this sum, of a group, of a block of output channels */                    \
    W(x) W(x_d) W(x_h) W(x_w)                                                                                          \
    W(y) W(y_d) W(y_h) W(y_w)                                                                                          \
    W(n_d) W(n_h) W(n_w)

/* halo_planes, halo_pixels: copy an image into scratch through one index map an axis (-1: zero), so that strides,
 * padding and phases are gone. Rows of the result are numbered by (d, h phase, line), each holds w_phases pieces of w_lines. */
#define HALO_WORDS(W)                                                                                                  \
    W(x) W(y) W(images)                                                                                                \
    W(x_image) W(x_channel) W(x_d) W(x_h) W(x_w)                                                                       \
    W(y_image) W(y_block) W(y_d) W(y_h) W(y_phase) W(y_w)                                                              \
    W(repeat)                  /* channel c of the result is channel c / repeat of the source */                       \
    W(blocks) W(starts)        /* channels that lie side by side in the source: starts[i]..starts[i + 1], 1 in planes */    \
    W(rows_d) W(rows_h) W(h_phases) W(w_phases) W(w_lines)                                                             \
    W(band) W(by_bands)        /* halo_planes: lines of a task, and whether neighbouring ones are blocks of a band, not bands of a block */ \
    W(zeros)                   /* halo_planes: whether rows are filled by whole vectors, with zeros outside the runs */ \
    W(map_d) W(map_h) W(map_w) /* source index of each row, of each (phase, line) */                                   \
    W(runs)                    /* a phase: lines begin..end read the source from `first` on in steps of `step` */

/* pack: y[group][block] + places[i] + r = x[group][block * width + r] + offsets[i], r < width; zero in rows past the last.
 * `offsets` rises. */
#define PACK_WORDS(W)                                                                                                  \
    W(x) W(y)                                                                                                          \
    W(offsets) W(places) W(count)                                                                                      \
    W(groups) W(rows) W(width) W(blocks)                                                                               \
    W(pieces)                  /* of the offsets, each a task */                                                       \
    W(by_blocks)               /* whether neighbouring blocks, rather than pieces, are neighbours in the source */     \
    W(x_group) W(x_row) W(y_group) W(y_block)

/* dense_rows: a row of the tile is an output channel, its vectors are pixels.
 * dense_lanes, dense_seven: a row of the tile is a pixel, its vectors are output channels. */
#define DENSE_WORDS(W)                                                                                                 \
    W(x) W(x_end)              /* the image in line space, and where readable memory ends */                           \
    W(w) W(b) W(y) W(work) W(work_stride) W(images)                                                                    \
    W(images_per_task) W(tasks) /* tasks of that many images */                                                        \
    W(x_image) W(x_group) W(y_image) W(y_group) W(y_channel)                                                           \
    W(groups) W(channels)      /* output channels of a group */                                                        \
    W(chunks) W(chunk)         /* output channels of one task */                                                       \
    W(w_width)                 /* output channels in a packed block; 1: unpacked */                                    \
    W(w_row)                   /* stride of output channels in weights that tasks pack themselves, else 0 */           \
    W(sums) W(sum_count)                                                                                               \
    W(pixel_block) W(k_block) W(activation)                                                                            \
    W(direct)                  /* vectors read the image itself, in line space, and not a stitched panel */            \
    W(by_groups)               /* whether neighbouring tasks are pixels of a group, and not groups that share pixels */ \
    W(in_turn)                 /* sums take turns, task by task: they share pixels and cache lines of the output */    \
    W(ahead)                   /* dense_rows: whether lines of the output are asked for while what goes there is summed */ \
    W(together)                /* dense_rows: 2 if a task has both phases of a row of the output, the second's sum behind */ \
    W(seven)                   /* sums of quarters of the weights; a chunk is of pairs of blocks then */                \
    W(depth)                   /* channels of a tap, which lie side by side then */

/* winograd_weights: y[block][point][channel][width] from the packed x[block][channel][tap][width]. */
#define WINOGRAD_WEIGHTS_WORDS(W)                                                                                      \
    W(x) W(y)                                                                                                          \
    W(outputs) W(kernel) W(rank) /* m, r, and along how many axes */                                                   \
    W(channels) W(width) W(pieces) /* of the channels, each a task */                                                  \
    W(x_block) W(y_block) W(y_point)

/* winograd: x is the image with channels last and zeros wherever a tile reaches. A task is a block of tiles, which may
 * belong to several images, and some blocks of output channels. */
#define WINOGRAD_WORDS(W)                                                                                              \
    W(x) W(w) W(weight) W(b) W(y) W(work) W(work_stride) W(images)                                                     \
    W(outputs) W(kernel) W(rank)                                                                                       \
    W(x_image) W(x_group) W(x_h) W(x_w) W(y_image) W(y_group) W(y_channel) W(y_h) W(y_w)                               \
    W(y_next)                  /* if tiles interleave: from a pixel to that of the next tile, else 0 */                \
    W(groups) W(depth) W(taps) W(pieces) W(channels) /* input channels of a group, summed over with taps and pieces */ \
    W(parts)                   /* tasks that share a block of tiles */                                                 \
    W(sums) W(sum_count) W(block) /* most tiles of a task */                                                           \
    W(images_per_task) W(blocks) /* of the tiles of so many images */                                                  \
    W(in_a_row)                /* blocks of tiles of one sum and group that follow each other: its weights stay in L2 */ \
    W(ahead)                   /* whether lines of the output are asked for before they are written */                 \
    W(block_sources)           /* most sources that a block has */                                                     \
    W(v)                       /* transformed inputs of each task [point], or 0: a task makes its own */               \
    W(v_row)                   /* elements from a source to the next in a matrix of transformed inputs */              \
    W(width)                   /* output channels whose sums are there at a time: some blocks of weights */            \
    W(w_width) W(w_block) W(w_point) W(k_block) W(activation) /* output channels in a packed block, its and its points' strides */ \
    W(columns)                 /* where those are in the transformed inputs of a tile */                               \
    W(weight_group) W(w_row)   /* weights as given: strides of groups and output channels */

/* One stride-1 convolution among those of a transposed one, where in the image its sources begin, and for each point
 * which (piece, channel) have a product. The offsets of each k are for the direct sum. */
#define WINOGRAD_SUM_WORDS(W)                                                                                          \
    W(tiles) W(tile_count) W(sources) W(source_count) W(w) W(points) W(terms) W(w_offsets) W(x_offsets)

#define WINOGRAD_POINT_WORDS(W) W(begin) W(end)

/* Output pixels of a tile are y + i*y_h + j*y_w, i < rows, j < columns; neighbours with equal `row` lie side by side. It
 * reads `pieces` of them from `source` on at the first tap and those `step` further on at the next ones. */
#define WINOGRAD_TILE_WORDS(W) W(source) W(step) W(y) W(rows) W(columns) W(row)

/* depthwise_planes: one input channel a group, channels first. A task is a band of rows of one channel. It is read in
 * place, or its halo is made in the thread's own scratch, where rows of the phases of H take turns as they do in the image. */
#define DEPTHWISE_PLANES_WORDS(W)                                                                                      \
    W(x) W(w) W(b) W(y) W(work) W(work_stride) W(images)                                                      \
    W(x_image) W(x_channel) W(x_d) W(x_h) W(x_w)                                                                       \
    W(y_image) W(y_channel)                                                                                            \
    W(channels) W(multiplier)                                                                                          \
    W(bands) W(band)           /* output rows of a band, in every sum */                                               \
    W(by_bands)                /* whether neighbouring tasks are channels of a band, and not bands of a channel */     \
    W(lines_d) W(h_phases) W(h_lines) W(band_lines) W(w_phases) W(w_lines)                                             \
    W(map_d) W(map_h) W(map_w) W(runs)                                                                                 \
    W(copies)                  /* copies of each band, each list ending with rows = 0; or null: rows by the maps */    \
    W(line_d) W(line_phase) W(line_h) W(band_size) /* strides of the scratch, and size of a band in it */              \
    W(sums) W(sum_count) W(kernel_taps) W(activation)                                                                  \
    W(in_place) W(x_band)      /* whether the image is read there, and from a band to the next */                      \
    W(w_sums)                  /* sums that share each output row */                                                   \
    W(spare) W(spare_sum)      /* where in scratch their results lie apart until all of them are there, if w_sums > 1 */ \
    W(out_w)

/* Rows of n elements, `step` apart in the source; step 0 clears them. With step -2 every second one of n neighbours goes
 * to `to`, and the others to `odd`; with step -3 to `to`, `odd` and `third` in turn. */
#define COPY_WORDS(W) W(rows) W(n) W(step) W(to) W(odd) W(third) W(to_row) W(at) W(at_row)

/* A sum of depthwise_planes. */
#define PLANE_SUM_WORDS(W)                                                                                             \
    W(x_row) W(w_step)         /* of a column of taps: from vector to vector of the image, from weight to weight */    \
    W(rows)                    /* of each band: its rows of tiles; each list ends with rows = 0 */                     \
    W(x_d)                                                                                                             \
    W(y) W(y_d) W(y_h) W(y_w) W(y_row) W(n_d) W(n_h)                                                                   \
    W(ahead)                   /* of an image too large for the caches: from what a tile reads first to what the next row of */ \
    W(ahead_lines) W(ahead_line) /* tiles is the first to read; lines of that for each row of a tile, and between them */

/* Tiles side by side: output rows of each, where they begin, and the tiles; the list of these ends with groups = 0. */
#define PLANE_ROW_WORDS(W) W(rows) W(x) W(y) W(tiles)

/* Vectors of a tile (2^size; half a vector: size 4), where it begins in the row of tiles; part: pixels of it that exist, if
 * not all. A vector of every second pixel has size 5, and two vectors of pixels that take turns in the output size 6. `groups` holds, for each K block, groups of columns
 * of one kind and then a 0. A group is: its kind, how many columns, and these. */
#define PLANE_TILE_WORDS(W) W(size) W(part) W(x) W(y) W(groups) W(blocks)

/* A run of taps (their number is the column's kind) whose vectors of the image lie x_row apart, as do those of the rows of
 * the tile (or every second one). Of these vectors those whose bits are in `lines` are not in the padding, and of each the
 * lanes in `mask`, if the tile has but one vector. A vector of every second pixel is made of two, with a mask each; what it leaves out is that of
 * the taps beside these, if the kind is MAX_COLUMN_TAPS more, and one pixel more, with a mask of its own, completes that of
 * the taps beside those, if it is twice as many more. If two vectors take turns, columns of the second one have a kind that
 * is MAX_COLUMN_TAPS more. */
#define PLANE_COLUMN_WORDS(W) W(x) W(w) W(lines) W(mask) W(next_mask) W(last_mask)

/* depthwise_pixels: one input channel a group, channels last. No halo at all: the pixels that a tile reads have addresses,
 * and padding is a pixel of zeros. A task is a band of rows of output pixels, for a block of channels. */
#define DEPTHWISE_PIXELS_WORDS(W)                                                                                      \
    W(x) W(w) W(b) W(y) W(work) W(work_stride) W(images)                                                               \
    W(x_image) W(y_image) W(channels) W(w_stride)                                                                      \
    W(row_words) W(list_words) /* room for the kernel rows that an output row meets, and for the lists of its tiles */ \
    W(sums) W(sum_count)                                                                                               \
    W(tasks) W(band)           /* bands of each block of channels; their rows */                                       \
    W(blocks) W(piece)         /* blocks of channels, and channels that are summed together */                         \
    W(on_lines)                /* whether pixels are whole vectors apart, and those may be on lines of the cache */    \
    W(k_block) W(activation)                                                                                           \
    W(ahead) W(x_row)          /* of an image too large for the caches, or 0: elements that an output row is the first to read; those of a line */

/* A sum of depthwise_pixels: map_d[t * n + q] is the offset of tap t for output q, -1 in the padding; w_rows the weights
 * of each (tap of D, tap of H), and w_step lies between those of a column. */
#define PIXEL_SUM_WORDS(W)                                                                                             \
    W(task_begin) W(taps_d) W(taps_h) W(map_d) W(map_h) W(w_rows) W(w_step)                                            \
    W(tiles) W(tile_count)                                                                                             \
    W(strip)                   /* tiles that are summed in all rows before the next ones are */                        \
    W(y) W(y_d) W(y_h) W(y_row) W(n_d) W(n_h)

/* Pixels of a tile in a row, where the first is written, and the columns of taps along W: for each its taps, its weights
 * and where in an image row the pixels + taps - 1 pixels lie that it reads, in bytes (-1: padding); then a 0. list: where
 * a list of their addresses is made; -1 if none is needed, since nothing is padded and there is but one K block. */
#define PIXEL_TILE_WORDS(W) W(pixels) W(y) W(columns) W(list)

/* settle: a NaN or inf spreads over a whole channel where sums are made of frequencies. Channels that have one are summed anew
 * by another engine; the others get their bias and activation. Either y_pixel is 1, or y_channel. */
#define SETTLE_WORDS(W)                                                                                                \
    W(y) W(b) W(images)                                                                                                \
    W(y_image) W(y_channel) W(y_pixel)                                                                                 \
    W(channels) W(pixels) W(tasks) W(activation)                                                                       \
    W(engine) W(engine_words)  /* its address; where its words lie, counted from these */                              \
    W(engine_tasks)            /* of a channel */

/* join: two engines in turn. A task is a band of rows of an image: the first engine writes it into the thread's scratch, and
 * the second reads it there, while it is in L2. */
#define JOIN_WORDS(W)                                                                                                  \
    W(first_engine) W(second_engine) /* addresses */                                                                   \
    W(first_words) W(second_words) /* where their words lie, counted from these */                                     \
    W(first_y) W(second_x)     /* and those that tell where the rows lie */                                            \
    W(panel) W(work_stride)                                                                                            \
    W(bands) W(band_count)     /* of an image */                                                                       \
    W(first_tasks) W(second_tasks) /* of an image */                                                                   \
    W(room)                    /* tasks of the first engine that the panel holds; no more than a band's: rows are made anew */

/* The tasks of a band, and how far from the image's first row its first one lies, as the engines count. */
#define JOIN_BAND_WORDS(W) W(first) W(first_end) W(second) W(second_end) W(y_bytes) W(x_bytes)

/* deform: x is the image in blocks of channels, channels last inside a block, with a border of one zero pixel (two
 * behind the slowest axis). A task is a tile of output pixels, and some blocks of output channels. */
#define DEFORM_WORDS(W)                                                                                                \
    W(x) W(w) W(b) W(offset) W(mask) W(y) W(work) W(work_stride) W(images)                                             \
    W(x_image) W(offset_image) W(mask_image) W(y_image) W(y_channel) W(y_w)                                            \
    W(ndim) W(size_d) W(size_h) W(size_w) W(line_d) W(line_h) /* image, and strides of its lines in pixels */          \
    W(width)                   /* elements from a pixel of a block to the next */                                      \
    W(outside)                 /* a pixel all of whose corners are zero */                                             \
    W(out_d) W(out_h) W(out_w)                                                                                         \
    W(stride_d) W(stride_h) W(stride_w) W(pad_d) W(pad_h) W(pad_w) W(dil_d) W(dil_h) W(dil_w)                          \
    W(kernel_d) W(kernel_h) W(kernel_w)                                                                                \
    W(blocks) W(block_count)   /* records of BLOCK_WORDS */                                                            \
    W(groups) W(channels)      /* weight groups, output channels of one */                                             \
    W(w_width) W(w_blocks) W(w_block)                                                                                  \
    W(given) W(w_row) W(panel) /* weights as they came, and room to pack some of them; 0: all are packed before */     \
    W(tile) W(tiles)           /* output pixels of a task, and in how many tiles an image has them */                  \
    W(splits)                  /* tasks that share the blocks of output channels of a tile */                          \
    W(vectors)                 /* 0, or of pixels: weights are read where they are */                                  \
    W(seven) W(seven_row)      /* 0, or where strassen.h's t1 ... t4 are, and elements of a row of s1 */               \
    W(tap_block) W(k_block) W(activation)

/* strassen_weights: y[pair of blocks of O][piece of k][4] from packed weights x[block of O][k]. A block of the first half of O
 * and one of the second are a pair. */
#define STRASSEN_WORDS(W)                                                                                              \
    W(x) W(y)                                                                                                          \
    W(pairs) W(block)          /* elements from a block to the next */                                                 \
    W(places) W(sizes) W(piece_count) /* of pieces, in elements of a block */

/* dcn: as deform, for 2-D. Groups are those of offsets, each in a block of its own, and `channels` those of a group. */
#define DCN_WORDS(W)                                                                                                   \
    DEFORM_WORDS(W)                                                                                                    \
    W(x_group)                 /* elements from a block of channels to the next */                                     \
    W(points) W(skipped)       /* samples of a pixel, and the tap that has none (or the number of taps) */             \
    W(middle_d) W(middle_h) W(middle_w) /* of the grid of taps, around which it is scaled */                           \
    W(scale)                   /* the bits of a double */                                                              \
    W(offset_pixel) W(mask_pixel) /* from a pixel to the next: 1, or the channels if these come last */                \
    W(softmax)                 /* whether masks are logits */

/* Input channels that share a weight group and an offset group. Weights are packed [block of O][k][w_width], or as they
 * are used: from `given` on, those at `offsets` in a row to `places`. */
#define BLOCK_WORDS(W) W(x) W(channels) W(group) W(offset_group) W(w) W(last) W(given) W(offsets) W(places)

/* deform_grad, dcn_grad: gradients of the same; those not wanted have address 0. A task is a band of output pixels of an image and a
 * block of channels, blocks before bands before images: tasks wait for some before them (turns.h). */
#define DEFORM_GRAD_WORDS(W)                                                                                           \
    W(geometry)                /* a record of DEFORM_WORDS or DCN_WORDS, without operands */                                        \
    W(x) W(gy) W(w) W(offset) W(mask)                                                                                  \
    W(gx) W(goffset) W(gw) W(gmask)                                                                                    \
    W(progress)                /* of every task, PROGRESS_STEP apart, from zero on */                                  \
    W(kept)                    /* sums of the weights' gradient over bands */                                          \
    W(work) W(work_stride) W(images) W(first_image) W(batch)                                                           \
    W(x_image) W(gy_image) W(gy_row) /* gy has channels last, gy_row elements a pixel */                               \
    W(mask_image) W(gx_image) W(gx_channel) W(gx_d) W(gx_h) W(gx_w)                                                    \
    W(w_row) W(channels)       /* weights of an output channel; output channels of a group */                          \
    W(blocks) W(block_count)   /* records of GRAD_BLOCK_WORDS */                                                       \
    W(band) W(bands)           /* pixels of a band */                                                                  \
    W(tap_block) W(row)        /* taps taken together; elements from a pixel's columns to the next's */                \
    W(as_given)                /* products are in the order of the weights, (channel, tap), not (tap, channel) */      \
    W(k_block)                                                                                                         \
    W(turned) W(turned_pixels) /* room to turn so many pixels of the image's gradient */

/* Input channels that share a weight group and an offset group; `shared`: the block before has the same offset group. */
#define GRAD_BLOCK_WORDS(W) W(x) W(channel) W(channels) W(group) W(offset_group) W(shared) W(w)

/* weight_grad: gy is the output's gradient in blocks of `width` output channels, channels last inside a block. Rows of
 * the tile are the units of one tap: input channels, or (channel, tap) pairs where all taps meet every pixel. A task is a
 * part of the units of one block, over all images. */
#define WEIGHT_GRAD_WORDS(W)                                                                                           \
    W(x) W(gy) W(gw) W(sums) W(work) W(work_stride)                                                                    \
    W(images) W(first_image) W(batch) /* of the chunk, the chunk's first, of all chunks */                             \
    W(x_image) W(x_group) W(x_d) W(x_h) W(x_w)                                                                         \
    W(n_d) W(n_h) W(n_w)       /* pixels of the output */                                                              \
    W(gy_image) W(gy_block)                                                                                            \
    W(channels) W(blocks) W(width) /* output channels of a group, their blocks, channels of a block */                 \
    W(units) W(unit_parts) W(unit_part) /* of a group, how many tasks share them, how many are one's */                \
    W(taps) W(tap_count)       /* records of GRAD_TAP_WORDS */                                                         \
    W(places) W(w_row)         /* where each (unit, tap) goes in the weights of an output channel, and their length */ \
    W(unmet) W(unmet_places)   /* weights whose taps meet nothing but padding */                                       \
    W(k_block) W(together)     /* K blocks that are added up before they are added to the total */

/* The output pixels at which a tap meets the image, and where each unit finds output pixel 0. */
#define GRAD_TAP_WORDS(W) W(x_offsets) W(begin_d) W(end_d) W(begin_h) W(end_h) W(begin_w) W(end_w)

/* winograd_grad_tiles, winograd_grad: x is the image with channels last and gy its output's gradient in blocks of `width`
 * output channels, both with zeros wherever a tile reaches. They may be a band of rows, and bands follow each other. A task
 * of the first is a piece of the sources or of the tiles of an image, one of the second as in weight_grad. */
#define WINOGRAD_GRAD_WORDS(W)                                                                                         \
    W(x) W(gy) W(v) W(u)       /* and both at the points: [point][source][channel], [point][block][tile][width] */     \
    W(source_marks) W(tile_marks) /* one of each for which it is 1 is to be summed directly */                         \
    W(gw) W(sums) W(direct) W(work) W(work_stride) /* direct: for each task, whether it has summed some tiles so */    \
    W(images) W(first_image) W(batch) /* of the chunk, the chunk's first, of all chunks */                             \
    W(chunk) W(band) W(bands)  /* images of all chunks but the last */                                                 \
    W(together)                /* passes over chunks and bands whose sums are added up before they are to the total */ \
    W(points)                  /* on an axis */                                                                        \
    W(x_image) W(x_h) W(x_w) W(gy_image) W(gy_block) W(gy_h) W(gy_w)                                                   \
    W(inputs) W(v_row) W(v_point) W(u_block) W(u_point) /* channels of a pixel of x: whole vectors */                  \
    W(sources) W(source_count) W(source_pieces) /* where each begins in the image */                                   \
    W(tiles) W(tile_count) W(tile_pieces) /* records of WINOGRAD_GRAD_TILE_WORDS */                                    \
    W(taps) W(tap_sources)     /* of the third axis, and how many sources further on each reads */                     \
    W(groups) W(channels) W(blocks) W(width) /* output channels of a group, their blocks, channels of a block */       \
    W(units) W(unit_parts) W(unit_part) /* input channels of a group, how many tasks share them, how many are one's */ \
    W(unit)                    /* what an input channel has of the sums */                                             \
    W(k_block)

/* The source of a tile at the first tap, where it begins in the gradient, and how many pixels of it there are. */
#define WINOGRAD_GRAD_TILE_WORDS(W) W(source) W(gy) W(rows) W(columns)

/* plane_grad: weight gradients of groups with few channels, as dot products of rows. A task is a group over all images;
 * its haloed band and its rows of the output's gradient are made in the thread's own scratch. */
#define PLANE_GRAD_WORDS(W)                                                                                            \
    W(x) W(gy) W(gw) W(work) W(work_stride) W(images)                                                                  \
    W(x_image) W(x_channel) W(x_d) W(x_h) W(x_w)                                                                       \
    W(gy_image) W(gy_channel) W(gy_d) W(gy_h) W(gy_w)                                                                  \
    W(channels) W(outputs)     /* of a group */                                                                        \
    W(n_d) W(n_h) W(n_w) W(band) /* pixels of the output, rows of a band */                                            \
    W(lines_d) W(h_phases) W(h_lines) W(band_lines) W(w_phases) W(w_lines)                                             \
    W(map_d) W(map_h) W(map_w) W(runs)                                                                                 \
    W(line_channel) W(line_d) W(line_phase) W(line_h) W(pitch) /* strides of the scratch */                            \
    W(kernel_taps)                                                                                                     \
    W(x_offsets) W(places) W(pairs) /* where each (channel, tap) begins and goes */

/* depthwise_plane_grad, depthwise_pixel_grad: weight gradients of one input channel a group. A task is a channel, or some
 * vectors of channels, over all images of the chunk. */
#define DEPTHWISE_GRAD_WORDS(W)                                                                                         \
    W(x) W(gy) W(gw) W(sums) W(work) W(work_stride)                                                                    \
    W(images) W(first_image) W(batch) /* of the chunk, the chunk's first, of all chunks */                             \
    W(x_image) W(x_channel) W(gy_image) W(gy_channel)                                                                  \
    W(channels) W(outputs)     /* of the input, and for each of them; pixels: of the output, vectors in a task */      \
    W(kernel_taps) W(parts) W(part_count) /* records of PLANE_PART_WORDS or PIXEL_PART_WORDS */

/* Kernel rows x columns that are summed together. Line i of the image meets row i - k of the gradient for kernel row k. */
#define PLANE_PART_WORDS(W)                                                                                             \
    W(rows) W(columns) W(stride) /* shape, and the stride along W: 1 or 2 */                                           \
    W(tap) W(tap_row) W(tap_column) /* where the sums go */                                                            \
    W(x) W(x_d) W(x_row) W(x_column)                                                                                   \
    W(gy) W(gy_d) W(gy_row)                                                                                            \
    W(n_d) W(n_h)              /* planes and rows of the gradient */                                                   \
    W(begin) W(end)            /* lines that the image has */                                                          \
    W(vectors) W(masks)        /* of a row, and for each: lanes that the gradient has, and those of each load of x */

/* Kernel rows x columns that all meet the image, wherever one of these outputs lies. Parts of the same outputs lie together. */
#define PIXEL_PART_WORDS(W)                                                                                             \
    W(rows) W(columns) W(tap) W(tap_row) W(tap_column)                                                                 \
    W(x) W(x_d) W(x_h) W(x_w) W(x_row) W(x_column)                                                                     \
    W(gy) W(gy_d) W(gy_h) W(gy_w)                                                                                      \
    W(n_d) W(n_h) W(n_w) W(together)

#define W_FIELD(name) int64_t name;
#define W_NAME(name) #name " "
#define DECLARE(type, WORDS)                                                                                           \
    typedef struct {                                                                                                   \
        WORDS(W_FIELD)                                                                                                 \
    } type;

DECLARE(sum_words, SUM_WORDS)
DECLARE(halo_words, HALO_WORDS)
DECLARE(pack_words, PACK_WORDS)
DECLARE(dense_words, DENSE_WORDS)
DECLARE(winograd_weights_words, WINOGRAD_WEIGHTS_WORDS)
DECLARE(winograd_words, WINOGRAD_WORDS)
DECLARE(winograd_sum_words, WINOGRAD_SUM_WORDS)
DECLARE(winograd_tile_words, WINOGRAD_TILE_WORDS)
DECLARE(winograd_point_words, WINOGRAD_POINT_WORDS)
DECLARE(depthwise_planes_words, DEPTHWISE_PLANES_WORDS)
DECLARE(plane_sum_words, PLANE_SUM_WORDS)
DECLARE(plane_row_words, PLANE_ROW_WORDS)
DECLARE(plane_tile_words, PLANE_TILE_WORDS)
DECLARE(plane_column_words, PLANE_COLUMN_WORDS)
DECLARE(copy_words, COPY_WORDS)
DECLARE(depthwise_pixels_words, DEPTHWISE_PIXELS_WORDS)
DECLARE(pixel_sum_words, PIXEL_SUM_WORDS)
DECLARE(pixel_tile_words, PIXEL_TILE_WORDS)
DECLARE(settle_words, SETTLE_WORDS)
DECLARE(join_words, JOIN_WORDS)
DECLARE(join_band_words, JOIN_BAND_WORDS)
DECLARE(deform_words, DEFORM_WORDS)
DECLARE(strassen_words, STRASSEN_WORDS)
DECLARE(dcn_words, DCN_WORDS)
DECLARE(block_words, BLOCK_WORDS)
DECLARE(weight_grad_words, WEIGHT_GRAD_WORDS)
DECLARE(grad_tap_words, GRAD_TAP_WORDS)
DECLARE(winograd_grad_words, WINOGRAD_GRAD_WORDS)
DECLARE(winograd_grad_tile_words, WINOGRAD_GRAD_TILE_WORDS)
DECLARE(plane_grad_words, PLANE_GRAD_WORDS)
DECLARE(depthwise_grad_words, DEPTHWISE_GRAD_WORDS)
DECLARE(plane_part_words, PLANE_PART_WORDS)
DECLARE(pixel_part_words, PIXEL_PART_WORDS)
DECLARE(deform_grad_words, DEFORM_GRAD_WORDS)
DECLARE(grad_block_words, GRAD_BLOCK_WORDS)

typedef struct {
    const char *name, *fields;
} word_layout;

static const word_layout word_layouts[] = {
    {"sum", SUM_WORDS(W_NAME)},
    {"halo", HALO_WORDS(W_NAME)},
    {"pack", PACK_WORDS(W_NAME)},
    {"dense", DENSE_WORDS(W_NAME)},
    {"winograd_weights", WINOGRAD_WEIGHTS_WORDS(W_NAME)},
    {"winograd", WINOGRAD_WORDS(W_NAME)},
    {"winograd_sum", WINOGRAD_SUM_WORDS(W_NAME)},
    {"winograd_tile", WINOGRAD_TILE_WORDS(W_NAME)},
    {"winograd_point", WINOGRAD_POINT_WORDS(W_NAME)},
    {"depthwise_planes", DEPTHWISE_PLANES_WORDS(W_NAME)},
    {"plane_sum", PLANE_SUM_WORDS(W_NAME)},
    {"plane_row", PLANE_ROW_WORDS(W_NAME)},
    {"plane_tile", PLANE_TILE_WORDS(W_NAME)},
    {"plane_column", PLANE_COLUMN_WORDS(W_NAME)},
    {"copy", COPY_WORDS(W_NAME)},
    {"depthwise_pixels", DEPTHWISE_PIXELS_WORDS(W_NAME)},
    {"pixel_sum", PIXEL_SUM_WORDS(W_NAME)},
    {"pixel_tile", PIXEL_TILE_WORDS(W_NAME)},
    {"settle", SETTLE_WORDS(W_NAME)},
    {"join", JOIN_WORDS(W_NAME)},
    {"join_band", JOIN_BAND_WORDS(W_NAME)},
    {"deform", DEFORM_WORDS(W_NAME)},
    {"strassen", STRASSEN_WORDS(W_NAME)},
    {"dcn", DCN_WORDS(W_NAME)},
    {"block", BLOCK_WORDS(W_NAME)},
    {"weight_grad", WEIGHT_GRAD_WORDS(W_NAME)},
    {"grad_tap", GRAD_TAP_WORDS(W_NAME)},
    {"winograd_grad", WINOGRAD_GRAD_WORDS(W_NAME)},
    {"winograd_grad_tile", WINOGRAD_GRAD_TILE_WORDS(W_NAME)},
    {"plane_grad", PLANE_GRAD_WORDS(W_NAME)},
    {"depthwise_grad", DEPTHWISE_GRAD_WORDS(W_NAME)},
    {"plane_part", PLANE_PART_WORDS(W_NAME)},
    {"pixel_part", PIXEL_PART_WORDS(W_NAME)},
    {"deform_grad", DEFORM_GRAD_WORDS(W_NAME)},
    {"grad_block", GRAD_BLOCK_WORDS(W_NAME)},
};

#define WORD_LAYOUTS ((int)(sizeof(word_layouts) / sizeof(word_layouts[0])))

#endif
