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

enum { LINEAR, RELU, RELU6, SILU, GELU, HARDSWISH };

/* One stride-1 sum over taps. A convolution has one; a transposed convolution one for each output phase.
 * Output pixel (d, h, w) of n_d x n_h x n_w reads x + d*x_d + h*x_h + w*x_w + (an image offset for each k) and is
 * written to y + d*y_d + h*y_h + w*y_w. */
#define SUM_WORDS(W)                                                                                                   \
    W(task_begin)  /* tasks of the sums before this one */                                                             \
    W(taps)        /* length of the two tables: channels of a group times taps; taps alone if depthwise */             \
    W(x_offsets)   /* image offset of each k */                                                                        \
    W(w_offsets)   /* weight offset of each k */                                                                       \
    W(w) W(w_group) W(w_block) /* weights of this sum, of a group, of a block of output channels */                    \
    W(x) W(x_d) W(x_h) W(x_w)                                                                                          \
    W(y) W(y_d) W(y_h) W(y_w)                                                                                          \
    W(n_d) W(n_h) W(n_w)

/* halo_planes, halo_pixels: copy an image into scratch through one index map an axis (-1: zero), so that strides,
 * padding and phases are gone. Rows of the result are numbered by (d, h), each holds w_phases pieces of w_lines. */
#define HALO_WORDS(W)                                                                                                  \
    W(x) W(y) W(images)                                                                                                \
    W(x_image) W(x_channel) W(x_d) W(x_h) W(x_w)                                                                       \
    W(y_image) W(y_block) W(y_d) W(y_h) W(y_phase) W(y_w)                                                              \
    W(repeat)                  /* channel c of the result is channel c / repeat of the source */                       \
    W(blocks) W(starts)        /* blocks of channels that lie side by side: starts[i]..starts[i + 1]; planes have 1 */ \
    W(rows_d) W(rows_h) W(w_phases) W(w_lines)                                                                         \
    W(map_d) W(map_h) W(map_w) /* source index of each row, of each (phase, line) */                                   \
    W(runs)                    /* a phase: lines begin..end read the source from `first` on in steps of `step` */

/* pack: y[sum][group][block][k][width] = x[row][offsets[k]], zero in rows past the last. In the sums of this engine
 * `x_offsets` is the order in which the k lie in the source and `x` where in it the sum begins. */
#define PACK_WORDS(W)                                                                                                  \
    W(x) W(y)                                                                                                          \
    W(sums) W(sum_count)                                                                                               \
    W(groups) W(rows) W(width) W(blocks)                                                                               \
    W(pieces)                  /* of k, each a task */                                                                 \
    W(by_blocks)               /* whether neighbouring blocks, rather than pieces, are neighbours in the source */     \
    W(x_group) W(x_row)

/* dense_rows: a row of the tile is an output channel, its vectors are pixels.
 * dense_lanes: a row of the tile is a pixel, its vectors are output channels. */
#define DENSE_WORDS(W)                                                                                                 \
    W(x) W(x_end)              /* the image in line space, and where readable memory ends */                           \
    W(w) W(b) W(y) W(work) W(work_stride) W(images)                                                                    \
    W(images_per_task) W(tasks) /* tasks of that many images */                                                        \
    W(x_image) W(x_group) W(y_image) W(y_group) W(y_channel)                                                           \
    W(groups) W(channels)      /* output channels of a group */                                                        \
    W(chunks) W(chunk)         /* output channels of one task */                                                       \
    W(w_width)                 /* output channels in a packed block; 1: unpacked */                                    \
    W(sums) W(sum_count)                                                                                               \
    W(pixel_block) W(k_block) W(activation)                                                                            \
    W(direct)                  /* vectors read the image itself, in line space, and not a stitched panel */

/* depthwise_planes: one input channel a group, channels first. A task is a band of rows of one channel; its halo is
 * made in the thread's own scratch (or the image read in place, where nothing is padded). */
#define DEPTHWISE_PLANES_WORDS(W)                                                                                      \
    W(x) W(x_end) W(w) W(b) W(y) W(work) W(work_stride) W(images)                                                      \
    W(x_image) W(x_channel) W(x_d) W(x_h) W(x_w)                                                                       \
    W(y_image) W(y_channel)                                                                                            \
    W(channels) W(multiplier)                                                                                          \
    W(bands) W(band)           /* output rows of a band, in every sum */                                               \
    W(lines_d) W(h_phases) W(h_lines) W(band_lines) W(w_phases) W(w_lines)                                             \
    W(map_d) W(map_h) W(map_w) W(runs)                                                                                 \
    W(copies)                  /* copies of each band, each list ending with rows = 0; or null: rows by the maps */    \
    W(line_d) W(line_phase) W(line_h) W(band_size) /* strides of the scratch, and size of a band in it */              \
    W(sums) W(sum_count) W(kernel_taps) W(activation)                                                                  \
    W(direct)                                                                                                          \
    W(w_sums)                  /* sums that share each output row */                                                   \
    W(spare) W(spare_sum)      /* where in scratch their results lie apart until all of them are there, if w_sums > 1 */ \
    W(out_w)

/* Rows of n elements, `step` apart in the source; step 0 clears them. With step -2 every second one of n neighbours goes
 * to `to`, and the others to `odd`. */
#define COPY_WORDS(W) W(rows) W(n) W(step) W(to) W(odd) W(to_row) W(at) W(at_row)

/* A sum of depthwise_planes. */
#define PLANE_SUM_WORDS(W)                                                                                             \
    W(x_row) W(w_step)         /* of a column of taps: from vector to vector of the image, from weight to weight */    \
    W(tiles) W(last_tiles)     /* of a band, and of the last one; each list ends with rows = 0 */                      \
    W(x_d)                                                                                                             \
    W(y) W(y_d) W(y_h) W(y_w) W(y_row) W(n_d) W(n_h)

/* Rows and vectors (2^size, or half a vector: size 4) of a tile, where it begins; part: pixels of it that exist, if
 * not all. Its taps are in columns: taps whose vectors of the image lie x_row apart, as do those of the rows of the tile.
 * `groups` holds, for each K block, groups of columns of equally many taps and then a 0. A group is: taps, words (these
 * two included), (image, weight) of each column's first tap. */
#define PLANE_TILE_WORDS(W) W(rows) W(size) W(part) W(x) W(y) W(groups) W(blocks)

/* depthwise_pixels: one input channel a group, channels last. No halo at all: the pixels that a tile reads have addresses,
 * and padding is a pixel of zeros. A task is a row of output pixels. */
#define DEPTHWISE_PIXELS_WORDS(W)                                                                                      \
    W(x) W(w) W(b) W(y) W(work) W(work_stride) W(images)                                                               \
    W(x_image) W(y_image) W(channels) W(w_stride)                                                                      \
    W(row_words)               /* room for the kernel rows that an output row meets */                                 \
    W(sums) W(sum_count) W(tasks) W(k_block) W(activation)

/* A sum of depthwise_pixels: map_d[t * n + q] is the offset of tap t for output q, -1 in the padding; w_rows the weights
 * of each (tap of D, tap of H), and w_step lies between those of a column. */
#define PIXEL_SUM_WORDS(W)                                                                                             \
    W(task_begin) W(taps_d) W(taps_h) W(map_d) W(map_h) W(w_rows) W(w_step)                                            \
    W(tiles) W(tile_count)                                                                                             \
    W(y) W(y_d) W(y_h) W(y_row) W(n_d) W(n_h)

/* Pixels of a tile in a row, where the first is written, and the columns of taps along W: for each its taps, its weights
 * and where in an image row the pixels + taps - 1 pixels lie that it reads, in bytes (-1: padding); then a 0. list: where
 * a list of their addresses is made; -1 if none is needed, since nothing is padded and there is but one K block. */
#define PIXEL_TILE_WORDS(W) W(pixels) W(y) W(columns) W(list)

/* deform: x is the image in blocks of channels, channels last inside a block, with a border of one zero pixel (two
 * behind the slowest axis). A task is a tile of output pixels. */
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
    W(w_width) W(w_blocks)                                                                                             \
    W(tile) W(tiles)           /* output pixels of a task, tasks of an image */                                        \
    W(tap_block) W(k_block) W(activation)

/* Input channels that share a weight group and an offset group. Weights are packed [block of O][k][w_width]. */
#define BLOCK_WORDS(W) W(x) W(channels) W(group) W(offset_group) W(w) W(last)

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
DECLARE(depthwise_planes_words, DEPTHWISE_PLANES_WORDS)
DECLARE(plane_sum_words, PLANE_SUM_WORDS)
DECLARE(plane_tile_words, PLANE_TILE_WORDS)
DECLARE(copy_words, COPY_WORDS)
DECLARE(depthwise_pixels_words, DEPTHWISE_PIXELS_WORDS)
DECLARE(pixel_sum_words, PIXEL_SUM_WORDS)
DECLARE(pixel_tile_words, PIXEL_TILE_WORDS)
DECLARE(deform_words, DEFORM_WORDS)
DECLARE(block_words, BLOCK_WORDS)

typedef struct {
    const char *name, *fields;
} word_layout;

static const word_layout word_layouts[] = {
    {"sum", SUM_WORDS(W_NAME)},
    {"halo", HALO_WORDS(W_NAME)},
    {"pack", PACK_WORDS(W_NAME)},
    {"dense", DENSE_WORDS(W_NAME)},
    {"depthwise_planes", DEPTHWISE_PLANES_WORDS(W_NAME)},
    {"plane_sum", PLANE_SUM_WORDS(W_NAME)},
    {"plane_tile", PLANE_TILE_WORDS(W_NAME)},
    {"copy", COPY_WORDS(W_NAME)},
    {"depthwise_pixels", DEPTHWISE_PIXELS_WORDS(W_NAME)},
    {"pixel_sum", PIXEL_SUM_WORDS(W_NAME)},
    {"pixel_tile", PIXEL_TILE_WORDS(W_NAME)},
    {"deform", DEFORM_WORDS(W_NAME)},
    {"block", BLOCK_WORDS(W_NAME)},
};

#define WORD_LAYOUTS ((int)(sizeof(word_layouts) / sizeof(word_layouts[0])))

#endif
