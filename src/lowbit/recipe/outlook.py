"""outlook - the memory and the arithmetic that a plan will take.

Traps     Estimates, made to be too high rather than too low: within a factor of two, not more.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lowbit.recipe.plan import Plan

SEARCH, FEEDBACK = 5_000, 20_000
"""Operations on one weight, counted at the speed of a matrix product: of a search for scales, of a solver with statistics."""
TUNED, TUNED_COPIES = 2_000, 14
"""Of a tuner: operations on one weight in a step, beside forward and backward, and float32 copies of a block."""
WHOLE_STEPS = 8.0
"""Of a finisher: operations on a weight and a token, forward, again, and backward."""
STUDY_COPIES, STUDY_LOGITS = 5, 6
"""Of a study: float32 copies of the whole model, and tensors as large as a step's logits."""
CHECK_TOKENS = 2 * 4 * 2048
"""Tokens of the closing check: two models, four windows."""
TRIAL_TOKENS = 80_000
"""Tokens that a transform runs to try candidates."""
BATCH_TOKENS = 8192
"""Tokens of one forward."""
OVERHEAD = 150_000_000
"""Bytes that the libraries take when they first compute."""


def peak_memory(plan: "Plan", tokens: int, window: int, hidden: int, block_weights: int) -> int:
    """Bytes of streams, one forward, one block, a solver's matrices, a tuner's copies.

    A token that waits at a stage holds its way in, residual, norm's input and output and that stage's input, in float32.
    A block is there as floats, as its loaded copy, as codes; a solver holds four matrices as wide as the widest input.
    A tuner holds copies of the block in float32 and every intermediate tensor of the windows of a step.
    """
    widest = max(t.shape[1] for t in plan.rows)
    streams = tokens * 4 * (4 * hidden + widest) * (2 if plan.needs_reference else 1)
    forward = min(tokens or CHECK_TOKENS, BATCH_TOKENS) * 4 * (4 * hidden + 3 * widest)
    trained: list[Any] = [*plan.tuners, *(m for t in plan.rows for m in t.transforms if hasattr(m, "batch"))]
    step = max((min(t.batch * window, tokens) for t in trained), default=0)
    training = 4 * (TUNED_COPIES * block_weights + step * (16 * hidden + 6 * widest)) if step else 0
    return OVERHEAD + streams + max(forward, training) + 10 * block_weights + (4 * 4 * widest**2 if tokens else 0)


def finishing_memory(plan: "Plan", tokens: int, window: int, hidden: int, block_weights: int, blocks: int) -> int:
    """Bytes that finishers take: codes, what is trained, one block's weights and gradients, hidden states between blocks.

    Streams: what enters the first block, and what leaves the original's last one.
    """
    widest, least = max(t.shape[1] for t in plan.rows), sum(t.bytes for t in plan.rows)
    taken = 0
    for method, weights in plan.finishers.items():
        step = min(method.batch * window, tokens)
        inside = 4 * (6 * block_weights + step * (16 * hidden + 6 * widest))
        taken = max(taken, method.weight_bytes * weights + inside + 4 * step * hidden * blocks)
    return OVERHEAD + taken + least + 4 * 3 * tokens * hidden if taken else 0


def gradient_memory(plan: "Plan", tokens: int, window: int, hidden: int, block_weights: int, blocks: int) -> int:
    """Bytes of the pass for gradients: what enters every block, one block run with gradients, its statistics."""
    rows = [t for t in plan.rows if t.gradients]
    if not rows:
        return 0
    widest, most = max(t.shape[1] for t in rows), max(4 * len(t.gradients) * max(t.shape) ** 2 for t in rows)
    linears = len(rows) / max(1, len({t.layer for t in rows}))
    inside = 4 * window * (32 * hidden + 12 * widest) + 8 * block_weights
    return OVERHEAD + 4 * tokens * hidden * (blocks + 2) + inside + round(most * linears)


def studies(plan: "Plan") -> list[Any]:
    """The methods that learn a basis on the whole model."""
    return [method for method in plan.turners if hasattr(method, "study")]


def study_memory(plan: "Plan", window: int, hidden: int, weights: int, blocks: int, vocabulary: int, tables: int) -> int:
    """Bytes that methods take which learn a basis on the whole model: its weights, their copies in the basis, behind sides and
    rounded, gradients; every intermediate tensor of the windows of a step, in all blocks; logits of both models."""
    step = max((method.batch * window for method in studies(plan)), default=0)
    if not step:
        return 0
    widest = max(t.shape[1] for t in plan.rows)
    inside: int = step * (blocks * (16 * hidden + 6 * widest) + STUDY_LOGITS * vocabulary)
    return OVERHEAD + 4 * (STUDY_COPIES * (weights + tables * vocabulary * hidden) + inside)


def operations(plan: "Plan", tokens: int, window: int, weights: int) -> float:
    """Operations of the run: forwards, second moments and their factors, rounding, training, the closing check."""
    rows = plan.rows
    transforms = max(len(t.transforms) for t in rows)
    passes = tokens * (1 + transforms + plan.needs_reference) + CHECK_TOKENS + (TRIAL_TOKENS * transforms if tokens else 0)
    rounding = sum(t.weights * (FEEDBACK + 8.0 * t.shape[1] if t.solver.needs else SEARCH) for t in rows)
    shared = {(t.layer, t.role, t.shape[1]): t.shape[1] for t in rows} if tokens else {}
    moments = sum(2.0 * tokens * n**2 + 3.0 * n**3 for n in shared.values())
    training = sum(t.steps * weights * (6.0 * min(t.batch * window, tokens) + TUNED) for t in plan.tuners)
    training += sum(m.steps * WHOLE_STEPS * weights * m.batch * window for m in studies(plan))
    training += sum(m.steps * WHOLE_STEPS * weights * min(m.batch * window, tokens) for m in plan.finishers)
    passes += 4 * tokens if any(t.gradients for t in rows) else 0  # forward twice, and backward
    # a tuner measures its held-out windows ten times and the stream goes once more through the tuned block
    total: float = 2.0 * (passes + 2 * tokens * len(plan.tuners)) * weights + rounding + moments + training
    return total
