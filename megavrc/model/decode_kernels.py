"""The kernels of `fused_step`: a product of a matrix with a few rows, and what surrounds it.

Matrix rows are held in registers whole, so a row has no inner loop. R is the number of samples. Sums are float32;
results are rounded where the layers round them.
"""
# mypy: disable-error-code="no-untyped-def"

try:
    import triton
    import triton.language as tl
except ImportError as error:
    raise ImportError("triton is not installed") from error


@triton.jit
def _normed(x_ptr, gain_ptr, WIDTH: tl.constexpr, WIDTH_2: tl.constexpr, EPS: tl.constexpr):
    """A row after RMSNorm, rounded where `RMSNorm` rounds; WIDTH_2 is the power of two from WIDTH on."""
    k = tl.arange(0, WIDTH_2)
    x = tl.load(x_ptr + k, mask=k < WIDTH, other=0.0).to(tl.float32)
    gain = tl.load(gain_ptr + k, mask=k < WIDTH, other=0.0)
    normed = x / tl.sqrt(tl.sum(x * x, 0) / WIDTH + EPS)
    return (normed.to(gain.dtype) * gain).to(tl.float32)


@triton.jit
def _matrix_rows(weight_ptr, rows, WIDTH: tl.constexpr, WIDTH_2: tl.constexpr):
    k = tl.arange(0, WIDTH_2)[None, :]
    at = weight_ptr + rows[:, None].to(tl.int64) * WIDTH + k
    return tl.load(at, mask=k < WIDTH, other=0.0).to(tl.float32)


@triton.jit
def norm_project_kernel(
    x_ptr, gain_ptr, weight_ptr, out_ptr, OUT: tl.constexpr, R: tl.constexpr, BLOCK: tl.constexpr,
    WIDTH: tl.constexpr, WIDTH_2: tl.constexpr, EPS: tl.constexpr,
):  # fmt: skip
    """out [R, OUT] = norm(x [R, WIDTH]) @ weight.T."""
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    w = _matrix_rows(weight_ptr, rows, WIDTH, WIDTH_2)
    for r in tl.static_range(R):
        x = _normed(x_ptr + r * WIDTH, gain_ptr, WIDTH, WIDTH_2, EPS)
        tl.store(out_ptr + r * OUT + rows, tl.sum(w * x[None, :], 1).to(out_ptr.dtype.element_ty))


@triton.jit
def qkv_kernel(
    x_ptr, gain_ptr, weight_ptr, table_ptr, position_ptr, q_ptr, kv_ptr, CAPACITY: tl.constexpr,
    HEAD: tl.constexpr, R: tl.constexpr, PAIRS: tl.constexpr, WIDTH: tl.constexpr, WIDTH_2: tl.constexpr,
    EPS: tl.constexpr,
):  # fmt: skip
    """norm, projection, rotation by table [S, 3, HEAD / 2, 2].

    Writes q [R, WIDTH] and, at `position`, kv [2, R, WIDTH / HEAD, CAPACITY, HEAD].
    """
    position = tl.load(position_ptr)
    even = 2 * (tl.program_id(0) * PAIRS + tl.arange(0, PAIRS))
    which = even // WIDTH  # query, key or value
    column = even % WIDTH
    head, inside = column // HEAD, column % HEAD
    turn = table_ptr + (position * 3 + which) * HEAD + inside
    cos, sin = tl.load(turn), tl.load(turn + 1)
    w_even = _matrix_rows(weight_ptr, even, WIDTH, WIDTH_2)
    w_odd = _matrix_rows(weight_ptr, even + 1, WIDTH, WIDTH_2)
    kind = q_ptr.dtype.element_ty
    for r in tl.static_range(R):
        x = _normed(x_ptr + r * WIDTH, gain_ptr, WIDTH, WIDTH_2, EPS)[None, :]
        a = tl.sum(w_even * x, 1).to(kind).to(tl.float32)
        b = tl.sum(w_odd * x, 1).to(kind).to(tl.float32)
        first, second = (a * cos - b * sin).to(kind), (a * sin + b * cos).to(kind)
        q_at = q_ptr + r * WIDTH + column
        tl.store(q_at, first, mask=which == 0)
        tl.store(q_at + 1, second, mask=which == 0)
        kv_row = (((which - 1) * R + r) * (WIDTH // HEAD) + head).to(tl.int64) * CAPACITY + position
        kv_at = kv_ptr + kv_row * HEAD + inside
        tl.store(kv_at, first, mask=which > 0)
        tl.store(kv_at + 1, second, mask=which > 0)


@triton.jit
def attention_kernel(
    q_ptr, kv_ptr, position_ptr, mixed_ptr, stats_ptr, scale, CAPACITY: tl.constexpr, HEAD: tl.constexpr,
    ROWS: tl.constexpr, SPLITS: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """One head over SPLIT keys: their weighted values (float32), largest score and sum of weights."""
    row, split = tl.program_id(0), tl.program_id(1)
    position = tl.load(position_ptr)
    if split * SPLIT <= position:
        keys = split * SPLIT + tl.arange(0, SPLIT)
        inside = tl.arange(0, HEAD)
        seen = keys <= position
        at = kv_ptr + (row.to(tl.int64) * CAPACITY + keys[:, None]) * HEAD + inside[None, :]
        k = tl.load(at, mask=seen[:, None], other=0.0).to(tl.float32)
        v = tl.load(at + ROWS * CAPACITY * HEAD, mask=seen[:, None], other=0.0).to(tl.float32)
        q = tl.load(q_ptr + row * HEAD + inside).to(tl.float32)
        scores = tl.where(seen, tl.sum(k * q[None, :], 1) * scale, float("-inf"))
        largest = tl.max(scores, 0)
        weights = tl.exp(scores - largest)
        place = row * SPLITS + split
        tl.store(mixed_ptr + place * HEAD + inside, tl.sum(v * weights[:, None], 0))
        tl.store(stats_ptr + 2 * place, largest)
        tl.store(stats_ptr + 2 * place + 1, tl.sum(weights, 0))


@triton.jit
def out_kernel(
    mixed_ptr, stats_ptr, position_ptr, weight_ptr, x_ptr, HEAD: tl.constexpr, SPLITS: tl.constexpr,
    SPLIT: tl.constexpr, R: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr, WIDTH_2: tl.constexpr,
):  # fmt: skip
    """x += (attention, its splits joined) @ weight.T."""
    splits = tl.load(position_ptr) // SPLIT + 1
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    w = _matrix_rows(weight_ptr, rows, WIDTH, WIDTH_2)
    k = tl.arange(0, WIDTH_2)
    real = k < WIDTH
    kind = x_ptr.dtype.element_ty
    for r in tl.static_range(R):
        place = (r * (WIDTH // HEAD) + k // HEAD) * SPLITS
        largest = tl.load(stats_ptr + 2 * place, mask=real, other=0.0)
        total = tl.load(stats_ptr + 2 * place + 1, mask=real, other=1.0)
        mixed = tl.load(mixed_ptr + place * HEAD + k % HEAD, mask=real, other=0.0)
        for split in range(1, splits):
            here = place + split
            top = tl.load(stats_ptr + 2 * here, mask=real, other=0.0)
            both = tl.maximum(largest, top)
            old, new = tl.exp(largest - both), tl.exp(top - both)
            total = total * old + tl.load(stats_ptr + 2 * here + 1, mask=real, other=0.0) * new
            mixed = mixed * old + tl.load(mixed_ptr + here * HEAD + k % HEAD, mask=real, other=0.0) * new
            largest = both
        attended = (mixed / total).to(kind).to(tl.float32)
        at = x_ptr + r * WIDTH + rows
        added = tl.sum(w * attended[None, :], 1).to(kind)
        tl.store(at, tl.load(at) + added)


@triton.jit
def gate_kernel(
    x_ptr, gain_ptr, weight_ptr, hidden_ptr, HIDDEN: tl.constexpr, R: tl.constexpr, BLOCK: tl.constexpr,
    WIDTH: tl.constexpr, WIDTH_2: tl.constexpr, EPS: tl.constexpr,
):  # fmt: skip
    """hidden [R, HIDDEN] = silu(gate) * up of norm(x)."""
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    w_gate = _matrix_rows(weight_ptr, rows, WIDTH, WIDTH_2)
    w_up = _matrix_rows(weight_ptr, HIDDEN + rows, WIDTH, WIDTH_2)
    kind = hidden_ptr.dtype.element_ty
    for r in tl.static_range(R):
        x = _normed(x_ptr + r * WIDTH, gain_ptr, WIDTH, WIDTH_2, EPS)[None, :]
        gate = tl.sum(w_gate * x, 1).to(kind).to(tl.float32)
        up = tl.sum(w_up * x, 1).to(kind)
        tl.store(hidden_ptr + r * HIDDEN + rows, (gate / (1.0 + tl.exp(-gate))).to(kind) * up)


@triton.jit
def down_kernel(
    hidden_ptr, weight_ptr, x_ptr, WIDTH: tl.constexpr, R: tl.constexpr, BLOCK: tl.constexpr,
    HIDDEN: tl.constexpr, HIDDEN_2: tl.constexpr,
):  # fmt: skip
    """x [R, WIDTH] += hidden @ weight.T."""
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    w = _matrix_rows(weight_ptr, rows, HIDDEN, HIDDEN_2)
    k = tl.arange(0, HIDDEN_2)
    for r in tl.static_range(R):
        hidden = tl.load(hidden_ptr + r * HIDDEN + k, mask=k < HIDDEN, other=0.0).to(tl.float32)
        at = x_ptr + r * WIDTH + rows
        added = tl.sum(w * hidden[None, :], 1).to(x_ptr.dtype.element_ty)
        tl.store(at, tl.load(at) + added)
