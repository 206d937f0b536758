/* All engines for one element type and one instruction set. */
#include "vector.h"
#include "tile.h"
#include "epilogue.h"
#include "halo.h"
#include "pack.h"
#include "dense.h"
#include "strassen.h"
#include "dense_seven.h"
#include "winograd.h"
#include "columns.h"
#include "depthwise.h"
#include "deform.h"
#include "dcn.h"
#include "deform_grad.h"
#include "dcn_grad.h"
#include "weight_grad.h"
#include "winograd_grad.h"
#include "depthwise_grad.h"
#include "narrow_grad.h"
#include "roof.h"

static const engine_fn FN(engines)[] = {FN(halo_planes), FN(halo_pixels), FN(pack), FN(dense_rows), FN(dense_lanes), FN(dense_seven),
                                        FN(winograd_weights), FN(winograd_inputs), FN(winograd),
                                        FN(depthwise_planes), FN(depthwise_pixels), FN(settle), FN(strassen_weights), FN(deform), FN(dcn),
                                        FN(weight_grad), FN(winograd_grad_tiles), FN(winograd_grad), FN(plane_grad),
                                        FN(depthwise_plane_grad), FN(depthwise_pixel_grad), FN(deform_grad), FN(dcn_grad)};

#undef real
#undef int_of_real
#undef FN
#undef HALF_FN
#undef vec
#undef loose_vec
#undef ivec
#undef LANES
#undef IS_FLOAT
