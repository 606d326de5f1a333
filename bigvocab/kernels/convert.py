"""Half-precision numbers widened to float32 or float64 in vectors: NumPy's own conversion of float16 runs at 1 GB/s."""

from __future__ import annotations

from numba import types
from numba.extending import intrinsic

from bigvocab.kernels import memory as m
from bigvocab.kernels.jit import jit


@intrinsic
def _store(typingctx, out, index, lanes):
    """Write lanes to `out` from `index` on, all within the array; float lanes are widened where `out` is float64."""

    def codegen(context, builder, signature, args):
        pointer, size = m.pointer_to(context, builder, out, args[0], args[1], lanes.count)
        wide = pointer.type.pointee
        value = args[2] if args[2].type == wide else builder.fpext(args[2], wide)
        builder.store(value, pointer, align=size)
        return context.get_dummy_value()

    return types.void(out, types.intp, lanes), codegen


@jit
def widen_row(x, out):
    """out[i] = x[i] for one row of any of the four types, exactly; out float32 or float64, not narrower than x."""
    size = m.width(x)
    whole = x.size - x.size % size
    for i in range(0, whole, size):
        _store(out, i, m.load(x, i))
    for i in range(whole, x.size):
        out[i] = m.load_scalar(x, i)


@jit
def widen_rows(x, columns, out):
    """out[r, c] = x[r, c] for the first `columns` columns of x (n, at least columns); out (n, columns)."""
    for r in range(out.shape[0]):
        widen_row(x[r, :columns], out[r])
