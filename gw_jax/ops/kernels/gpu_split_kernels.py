"""The six Triton kernels of :mod:`gpu_split`. Imported only where Triton is installed.

A program has a part of the positions of one sample, or the matrices of one sample. In memory a sample is ``[p, g, d]``; a
tile of it becomes rows ``[tile * d, g]``. ``program_id(0)`` is the sample, ``program_id(1)`` the part. Arguments are what a
kernel reads, numbers, what it writes, and sizes. Arrays are float32, but for images and the matrices of the input's
gradient.
"""

import triton
import triton.language as tl

# Of products of float32: three products of TF32 parts, exact to nearly float32.
FULL: tl.constexpr = tl.constexpr("tf32x3")
# Triton's interpreter multiplies the bits of bfloat16 numbers, rounds to them by cutting off, and knows no parts.
INTERPRETED: tl.constexpr = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def _places(first, positions, g: tl.constexpr, d: tl.constexpr, tile: tl.constexpr):
    """Offsets of a tile in a sample ``[tile, g, d]``, and which of its positions the sample has."""
    position = first + tl.arange(0, tile)[:, None, None]
    offset = position * (g * d) + tl.arange(0, g)[None, :, None] * d + tl.arange(0, d)[None, None, :]
    return offset, position < positions


@triton.jit
def _load(pointer, first, positions, g: tl.constexpr, d: tl.constexpr, tile: tl.constexpr):
    """The rows of a tile, zero past the end of the sample."""
    offset, valid = _places(first, positions, g, d, tile)
    return tl.reshape(tl.permute(tl.load(pointer + offset, mask=valid, other=0.0), (0, 2, 1)), (tile * d, g))


@triton.jit
def _store(pointer, rows, first, positions, g: tl.constexpr, d: tl.constexpr, tile: tl.constexpr):
    offset, valid = _places(first, positions, g, d, tile)
    values = tl.permute(tl.reshape(rows, (tile, d, g)), (0, 2, 1))
    tl.store(pointer + offset, _rounded(values, pointer), mask=valid)


@triton.jit
def _only_valid(rows, first, positions, d: tl.constexpr, tile: tl.constexpr):
    return tl.where((first * d + tl.arange(0, tile * d) < positions * d)[:, None], rows, 0.0)


@triton.jit
def _distances(pointer, shift, first, positions, g: tl.constexpr, d: tl.constexpr, tile: tl.constexpr):
    """The rows of a tile less ``shift`` ``[g]``, in the input's type."""
    rows = _load(pointer, first, positions, g, d, tile)
    return _rounded(_only_valid(rows.to(tl.float32) - shift[None, :], first, positions, d, tile), pointer)


@triton.jit
def _dot(a, b, precision: tl.constexpr = FULL):
    """``a b`` in float32."""
    if INTERPRETED:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee")
    return tl.dot(a, b, input_precision=precision)


@triton.jit
def _product(a, b, c, precision: tl.constexpr = FULL):
    """``a b + c`` in float32."""
    if INTERPRETED:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), c, input_precision="ieee")
    return tl.dot(a, b, c, input_precision=precision)


@triton.jit
def _rounded(values, pointer):
    """``values`` in the type of what ``pointer`` points to, rounded to nearest."""
    if pointer.dtype.element_ty == tl.float32:
        return values
    if INTERPRETED:
        bits = values.to(tl.int32, bitcast=True)
        values = (bits + 0x7FFF + ((bits >> 16) & 1)).to(tl.float32, bitcast=True)
    return values.to(pointer.dtype.element_ty)


@triton.jit
def _square(sample, g: tl.constexpr):
    """Offsets of a sample's matrix in ``[n, g, g]``."""
    return sample * g * g + tl.arange(0, g)[:, None] * g + tl.arange(0, g)[None, :]


@triton.jit
def _of_places(pointer, sample, g: tl.constexpr, d: tl.constexpr):
    """Scale or bias of a sample, ``[1, d, g]`` from ``[n, g * d]``."""
    offset = tl.arange(0, g)[None, None, :] * d + tl.arange(0, d)[None, :, None]
    return tl.load(pointer + sample * (g * d) + offset)


@triton.jit
def _identity(g: tl.constexpr):
    return (tl.arange(0, g)[:, None] == tl.arange(0, g)[None, :]).to(tl.float32)


@triton.jit
def _total(matrix):
    return tl.sum(tl.sum(matrix, 1), 0)


@triton.jit
def _sum_of_parts(pointer, sample, g: tl.constexpr, parts: tl.constexpr):
    """A sample's matrix from ``[n, parts, g, g]``."""
    total = tl.load(pointer + _square(sample * parts, g))
    for part in range(1, parts):
        total += tl.load(pointer + _square(sample * parts + part, g))
    return total


@triton.jit
def _sum_of_rows(pointer, sample, g: tl.constexpr, parts: tl.constexpr):
    """A sample's ``[g]`` from ``[n, parts, g]``."""
    offset = sample * parts * g + tl.arange(0, g)
    total = tl.load(pointer + offset)
    for part in range(1, parts):
        total += tl.load(pointer + offset + part * g)
    return total


@triton.jit
def statistics(
    x, positions, products, sums, shifts, g: tl.constexpr, d: tl.constexpr, tile: tl.constexpr, parts: tl.constexpr
):
    """Sums of ``e`` and ``e^T e`` over a part, and the shift: distances are from it."""
    sample, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    x += sample * positions * g * d
    # Near the mean of every group, and equal to its values where they are all the same: its first value and the mean
    # distance from it in the first tile. The same in all parts.
    start = tl.load(x + tl.arange(0, g) * d).to(tl.float32)
    beginning = _load(x, 0, positions, g, d, tile).to(tl.float32) - start[None, :]
    held = tl.minimum(tile, positions) * d
    shift = start + tl.sum(_only_valid(beginning, 0, positions, d, tile), 0) / held

    total, product = tl.zeros((g,), tl.float32), tl.zeros((g, g), tl.float32)
    tiles = tl.cdiv(tl.cdiv(positions, tile), parts)
    for i in range(tiles):
        rows = _distances(x, shift, (part * tiles + i) * tile, positions, g, d, tile)
        product = _product(tl.trans(rows), rows, product)
        total += tl.sum(rows.to(tl.float32), 0)
    tl.store(products + _square(sample * parts + part, g), product)
    tl.store(sums + (sample * parts + part) * g + tl.arange(0, g), total)
    if part == 0:
        tl.store(shifts + sample * g + tl.arange(0, g), shift)


@triton.jit
def _normalise(covariance, epsilon, g: tl.constexpr):
    """``C / tr(C)`` and the trace, 1 where it is zero."""
    covariance += epsilon * _identity(g)
    trace = _total(covariance * _identity(g))
    trace = tl.where(trace == 0, 1.0, trace)
    return covariance / trace, trace


@triton.jit
def whitening_matrices(
    products,
    sums,
    shifts,
    count,
    epsilon,
    whitening,
    covariances,
    centres,
    g: tl.constexpr,
    parts: tl.constexpr,
    iterations: tl.constexpr,
    precision: tl.constexpr,
):
    """``W``, ``C`` and the means."""
    sample = tl.program_id(0).to(tl.int64)
    mean = _sum_of_rows(sums, sample, g, parts) / count
    covariance = _sum_of_parts(products, sample, g, parts) / count - mean[:, None] * mean[None, :]
    normalised, trace = _normalise(covariance, epsilon, g)
    step = 1.5 * _identity(g) - 0.5 * normalised
    p, y = step, _dot(normalised, step, precision)
    for _ in range(iterations - 2):
        step = 1.5 * _identity(g) - 0.5 * _dot(p, y, precision)
        p, y = _dot(step, p, precision), _dot(y, step, precision)
    step = 1.5 * _identity(g) - 0.5 * _dot(p, y, precision)
    tl.store(whitening + _square(sample, g), _dot(step, p, precision) * tl.rsqrt(trace))
    tl.store(covariances + _square(sample, g), covariance)
    where = sample * g + tl.arange(0, g)
    tl.store(centres + where, tl.load(shifts + where) + mean)


@triton.jit
def apply(
    x,
    whitening,
    centres,
    scale,
    bias,
    positions,
    y,
    g: tl.constexpr,
    d: tl.constexpr,
    tile: tl.constexpr,
    parts: tl.constexpr,
    relu: tl.constexpr,
):
    """``y = e W * scale + bias`` of a part, and ``max(y, 0)`` with ``relu``."""
    sample, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    x += sample * positions * g * d
    y += sample * positions * g * d
    centre = tl.load(centres + sample * g + tl.arange(0, g))
    factor, offset = _of_places(scale, sample, g, d), _of_places(bias, sample, g, d)
    matrix = tl.load(whitening + _square(sample, g))
    # All digits of the matrix, also where the rows are bfloat16: it is then the sum of two.
    upper = _rounded(matrix, x)
    lower = _rounded(matrix - upper.to(tl.float32), x)
    tiles = tl.cdiv(tl.cdiv(positions, tile), parts)
    for i in range(tiles):
        first = (part * tiles + i) * tile
        rows = _distances(x, centre, first, positions, g, d, tile)
        white = _dot(rows, upper)
        if rows.dtype != tl.float32:
            white = _product(rows, lower, white)
        values = tl.reshape(white, (tile, d, g)) * factor + offset
        if relu:
            values = tl.where(values < 0, 0.0, values)  # Not tl.maximum: it may take the number where one is NaN.
        _store(y, tl.reshape(values, (tile * d, g)), first, positions, g, d, tile)


@triton.jit
def _outer(dy, y, first, positions, g: tl.constexpr, d: tl.constexpr, tile: tl.constexpr, relu: tl.constexpr):
    """The rows of the output's gradient, zero where a ReLU has cut off the output."""
    rows = _load(dy, first, positions, g, d, tile).to(tl.float32)
    if relu:
        rows = tl.where(_load(y, first, positions, g, d, tile).to(tl.float32) > 0, rows, 0.0)
    return rows


@triton.jit
def gradient_sums(
    x,
    dy,
    y,
    scale,
    centres,
    positions,
    crossed,
    sums,
    inner_sums,
    outer_sums,
    g: tl.constexpr,
    d: tl.constexpr,
    tile: tl.constexpr,
    parts: tl.constexpr,
    relu: tl.constexpr,
):
    """Sums over a part: ``e^T f``, ``e`` and ``f`` with ``f = dy * scale``; ``dy``, which is the bias's gradient."""
    sample, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    x += sample * positions * g * d
    dy += sample * positions * g * d
    y += sample * positions * g * d if relu else 0
    centre = tl.load(centres + sample * g + tl.arange(0, g))
    factor = _of_places(scale, sample, g, d)
    product, total = tl.zeros((g, g), tl.float32), tl.zeros((g,), tl.float32)
    inner_total, outer_total = tl.zeros((g,), tl.float32), tl.zeros((d, g), tl.float32)
    tiles = tl.cdiv(tl.cdiv(positions, tile), parts)
    for i in range(tiles):
        first = (part * tiles + i) * tile
        rows = _distances(x, centre, first, positions, g, d, tile)
        outer = tl.reshape(_outer(dy, y, first, positions, g, d, tile, relu), (tile, d, g))
        inner = _rounded(tl.reshape(outer * factor, (tile * d, g)), x)
        product = _product(tl.trans(rows), inner, product)
        total += tl.sum(rows.to(tl.float32), 0)
        inner_total += tl.sum(inner.to(tl.float32), 0)
        outer_total += tl.sum(outer, 0)
    number = sample * parts + part
    tl.store(crossed + _square(number, g), product)
    tl.store(sums + number * g + tl.arange(0, g), total)
    tl.store(inner_sums + number * g + tl.arange(0, g), inner_total)
    places = tl.arange(0, d)[:, None] + tl.arange(0, g)[None, :] * d
    tl.store(outer_sums + number * (g * d) + places, outer_total)


@triton.jit
def gradient_matrices(
    crossed,
    sums,
    inner_sums,
    covariances,
    count,
    epsilon,
    upper,
    through,
    g: tl.constexpr,
    parts: tl.constexpr,
    iterations: tl.constexpr,
    precision: tl.constexpr,
):
    """``W`` and ``(2 / count) dC`` in the input's type; :func:`inverse_sqrt.newton_vjp` has the equations."""
    sample = tl.program_id(0).to(tl.int64)
    mean, inner = _sum_of_rows(sums, sample, g, parts) / count, _sum_of_rows(inner_sums, sample, g, parts)
    cotangent = _sum_of_parts(crossed, sample, g, parts) - mean[:, None] * inner[None, :]
    cotangent = 0.5 * (cotangent + tl.trans(cotangent))
    normalised, trace = _normalise(tl.load(covariances + _square(sample, g)), epsilon, g)
    before = 1.5 * _identity(g) - 0.5 * normalised
    p, y = before, _dot(normalised, before, precision)
    dstep = -0.5 * cotangent
    dp = dstep
    for _ in range(1, iterations):
        step = 1.5 * _identity(g) - 0.5 * _dot(p, y, precision)
        change = _dot(before, dstep, precision)
        cubic = _dot(before, change + 0.5 * tl.trans(change), precision)
        dstep = cubic + tl.trans(cubic) - 1.5 * (change + tl.trans(change))
        dp = _product(dp, step, _dot(p, dstep, precision), precision)
        p, y, before = _dot(step, p, precision), _dot(y, step, precision), step
    # The last of the products above is one too many for y; p is the result.
    root = tl.rsqrt(trace)
    matrix = root * p
    found = root * 0.5 * (dp + tl.trans(dp))
    through_trace = _total(found * normalised) + 0.5 * _total(cotangent * matrix)
    dcovariance = (found - _identity(g) * through_trace) / trace
    tl.store(upper + _square(sample, g), _rounded(matrix, upper))
    tl.store(through + _square(sample, g), _rounded((2.0 / count) * dcovariance, through))


@triton.jit
def input_gradient(
    x,
    dy,
    y,
    scale,
    centres,
    inner_sums,
    upper,
    through,
    positions,
    count,
    dx,
    dscale,
    g: tl.constexpr,
    d: tl.constexpr,
    tile: tl.constexpr,
    parts: tl.constexpr,
    sum_parts: tl.constexpr,
    relu: tl.constexpr,
):
    """``dx = (f - t / m) W + e (2 / m) dC`` of a part, and its share of the scale's gradient."""
    sample, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    x += sample * positions * g * d
    dy += sample * positions * g * d
    dx += sample * positions * g * d
    y += sample * positions * g * d if relu else 0
    centre = tl.load(centres + sample * g + tl.arange(0, g))
    factor = _of_places(scale, sample, g, d)
    mean = _sum_of_rows(inner_sums, sample, g, sum_parts) / count
    matrix, derivative = tl.load(upper + _square(sample, g)), tl.load(through + _square(sample, g))
    total = tl.zeros((d, g), tl.float32)
    tiles = tl.cdiv(tl.cdiv(positions, tile), parts)
    for i in range(tiles):
        first = (part * tiles + i) * tile
        rows = _distances(x, centre, first, positions, g, d, tile)
        outer = tl.reshape(_outer(dy, y, first, positions, g, d, tile, relu), (tile, d, g))
        # The mean leaves the gradient before it is rounded: an error of it would be the same at all positions.
        inner = _rounded(tl.reshape(outer * factor, (tile * d, g)) - mean[None, :], x)
        _store(dx, _product(rows, derivative, _dot(inner, matrix)), first, positions, g, d, tile)
        total += tl.sum(outer * tl.reshape(_dot(rows, matrix), (tile, d, g)), 0)
    places = tl.arange(0, d)[:, None] + tl.arange(0, g)[None, :] * d
    tl.store(dscale + (sample * parts + part) * (g * d) + places, total)
