"""Eighteen mistakes that public solutions of the lab make, each beside the right way, caught by a check.

    pitfall = PITFALLS["shrinking-mask"]
    pitfall.check(pitfall.right)  # silent
    pitfall.check(pitfall.wrong)  # AssertionError: of 85 tokens that the model knows, only these are right ...
    print(pitfall.effect())

The mistakes are in `lab5.pitfalls.training` and `lab5.pitfalls.decoding`. Two of them are settings too, so that
they can be measured: the masking "cosine_kept" and the order "lab".
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lab5.attention import MultiHeadAttention, scaled_dot_product_attention
from lab5.masking import MASKINGS
from lab5.objectives import masked_cross_entropy, validate
from lab5.pitfalls import decoding, training
from lab5.samplers import ORDERS
from lab5.trainer import fit


@dataclass(frozen=True)
class Pitfall:
    """One mistake: what it is, where it was found, how it is caught and what it does."""

    number: int
    title: str
    source: str
    wrong: Callable[..., Any]
    right: Callable[..., Any]  # the package's own, called in the same way
    check: Callable[[Callable[..., Any]], None]  # of either; raises AssertionError, with a sentence
    effect: Callable[[], str]  # a line with numbers
    variants: tuple[Callable[..., Any], ...] = ()  # other forms of the same mistake


PITFALLS: dict[str, Pitfall] = {
    "shrinking-mask": Pitfall(
        1, "Known tokens are put back with the shrinking mask: committed tokens turn grey again",
        "report A, whose sweet spot of 7 of 100 steps comes of it",
        wrong=decoding.shrinking_mask, right=decoding.package, check=decoding.check_committed_stay,
        effect=lambda: (
            f"right tokens of 85 after t = 1 .. 10: {decoding.right_in_hole(decoding.shrinking_mask)}, "
            f"should be {decoding.right_in_hole(decoding.package)}: the fewer steps, the better it looks"
        ),
    ),
    "original-tokens": Pitfall(
        2, "Every step is given the tokens of the start: only the last step's survive",
        "report B",
        wrong=decoding.original_tokens, right=decoding.package, check=decoding.check_steps_build_on_steps,
        effect=lambda: f"right tokens of 85 at the end: {decoding.right_in_hole(decoding.original_tokens)[-1]}",
    ),
    "known-redrawn": Pitfall(
        3, "Known tokens are never restored: the face around the hole is redrawn, so that iterating seems to hurt",
        "reports C and D",
        wrong=decoding.nothing_restored, right=decoding.package, check=decoding.check_known_stay,
        effect=lambda: (
            "known tokens changed after t = 1, 5 and 9 by a model that mistakes one in twenty: "
            "{:.0%}, {:.0%} and {:.0%}, should be none".format(*decoding.known_changed(decoding.nothing_restored)[::4])
        ),
    ),
    "missing-transpose": Pitfall(
        4, "Heads cut out by a bare view, or joined without the transpose back",
        "two public solutions",
        wrong=training.BareView, right=MultiHeadAttention, check=training.check_permutation,
        effect=lambda: (
            "attn(x[perm]) and attn(x)[perm] are apart by "
            f"{training.permutation_gaps(training.BareView).max():.2f} with a bare view, "
            f"{training.permutation_gaps(training.NoTransposeBack).max():.2f} without the transpose back, "
            f"{training.permutation_gaps(MultiHeadAttention).max():.0e} when right"
        ),
        variants=(training.NoTransposeBack,),
    ),
    "softmax-axis": Pitfall(
        5, "The softmax runs over the queries in place of the keys",
        "report A's second attention",
        wrong=training.softmax_over_queries, right=scaled_dot_product_attention, check=training.check_row_sums,
        effect=lambda: "a query's weights sum to {:.2f} .. {:.2f}, should be 1".format(
            *map(float, training.row_sums(training.softmax_over_queries).aminmax())
        ),
    ),
    "dropout-in-forward": Pitfall(
        6, "Dropout made inside forward is active in evaluation as well",
        "public solutions",
        wrong=training.DropoutInForward, right=MultiHeadAttention, check=training.check_evaluation,
        effect=lambda: (
            "two calls in evaluation mode differ by {:.0%}, should be {:.0%}".format(
                *(training.gaps_between_calls(f).mean() for f in (training.DropoutInForward, MultiHeadAttention))
            )
        ),
    ),
    "class-axis": Pitfall(
        7, "Cross-entropy takes the positions for classes",
        "public solutions",
        wrong=training.class_axis_on_positions, right=masked_cross_entropy, check=training.check_uniform_loss,
        effect=lambda: (
            "a model without opinion loses "
            f"{training.uniform_loss(training.class_axis_on_positions):.3f} = ln(256) / 4, "
            f"should be {training.uniform_loss(masked_cross_entropy):.2f} = ln(1024)"
        ),
    ),
    "ignore-nothing": Pitfall(
        8, "ignore_index is a number that no target has: the loss on masked tokens is that on all",
        "report E",
        wrong=training.ignore_nothing, right=masked_cross_entropy, check=training.check_only_masked_count,
        effect=lambda: (
            f"a model that can only copy loses {training.loss_of_a_copyist(training.ignore_nothing):.2f} "
            f"with half of the tokens masked, should be {training.loss_of_a_copyist(masked_cross_entropy):.2f}"
        ),
    ),
    "inverted-mask": Pitfall(
        9, "gamma(u) of the tokens is kept, and the rest masked",
        "report A",
        wrong=MASKINGS["cosine_kept"], right=MASKINGS["cosine"], check=training.check_masked_share,
        effect=lambda: (
            f"{training.masked_shares(MASKINGS['cosine_kept']).mean():.0%} of the tokens are masked on average, "
            f"should be {training.masked_shares(MASKINGS['cosine']).mean():.0%}"
        ),
    ),
    "drowned-order": Pitfall(
        10, "Noise of 4.5 on a probability, which is at most 1: the order is random",
        "reports A, C and E",
        wrong=ORDERS["lab"], right=ORDERS["confidence"], check=decoding.check_order,
        effect=lambda: (
            "rank correlation of order and probability: "
            f"{decoding.rank_correlation(ORDERS['lab'], 4.5):.2f}, with log-probabilities "
            f"{decoding.rank_correlation(ORDERS['confidence'], 4.5):.2f}, with noise of 0.1 on the probability "
            f"{decoding.rank_correlation(ORDERS['lab'], 0.1):.2f}"
        ),
    ),
    "compounding-count": Pitfall(
        11, "The share that stays masked is taken of the current mask: it compounds",
        "report A without its flag for true scheduling",
        wrong=decoding.of_the_current_mask, right=decoding.package_counts, check=decoding.check_counts,
        effect=lambda: (
            f"masked of 85 after t = 1 .. 10: {decoding.of_the_current_mask('cosine', 10, 85)}, "
            f"should be {decoding.package_counts('cosine', 10, 85)}"
        ),
    ),
    "step-from-zero": Pitfall(
        12, "Steps counted from 0, cos(pi/2) rounded up, 1.0 // 0.1: the last step leaves tokens masked",
        "public solutions; the stairs are report C's",
        wrong=decoding.from_step_zero, right=decoding.package_counts, check=decoding.check_nothing_left,
        effect=lambda: (
            f"still masked of 85 at the end: {decoding.from_step_zero('cosine', 10, 85)[-1]}, "
            f"{decoding.ceil_of_a_float('cosine', 10, 85)[-1]} and {decoding.floor_division('stair', 10, 85)[-1]}"
        ),
        variants=(decoding.ceil_of_a_float, decoding.floor_division),
    ),
    "mask-id-as-a-class": Pitfall(
        13, "The mask id is left among the classes, and clamped to the last code when it wins",
        "report A",
        wrong=decoding.mask_id_as_a_class, right=decoding.package, check=decoding.check_mask_id_is_no_class,
        effect=lambda: (
            "right tokens of 85, by a model that knows them but finds the mask id likelier: "
            f"{decoding.right_in_hole(decoding.mask_id_as_a_class, decoding.LovesTheMaskId)[-1]}, "
            f"should be {decoding.right_in_hole(decoding.package, decoding.LovesTheMaskId)[-1]}"
        ),
    ),
    "silent-sweet-spot": Pitfall(
        14, "A sweet spot beyond T, or of -1, does nothing and is tabulated as an effect",
        "report E: t = 8 of 7 and t = -1 of 7",
        wrong=decoding.silent_sweet_spot, right=decoding.package, check=decoding.check_sweet_spot,
        effect=lambda: "steps taken with t = 11, t = -1 and t = 10 of 10: {}, {} and {}".format(
            *(len(decoding.run(decoding.silent_sweet_spot, stop_at=t)[0]) for t in (11, -1, 10))
        ),
    ),
    "deaf-schedule": Pitfall(
        15, "The flag for the schedule never reaches the model: three schedules, one result",
        "report C",
        wrong=decoding.deaf_to_schedule, right=decoding.package, check=decoding.check_schedule_arrives,
        effect=lambda: (
            f"masked tokens at each step of linear: {decoding.masks_shown(decoding.deaf_to_schedule, 'linear')}, "
            f"should be {decoding.masks_shown(decoding.package, 'linear')}"
        ),
    ),
    "loose-validation": Pitfall(
        16, "Validation with fresh masks, with dropout on, or divided by the wrong count",
        "public solutions; report A's 13.1 is 1.31",
        wrong=training.fresh_masks, right=validate, check=training.check_validation,
        effect=training.validation_effect,
        variants=(training.dropout_on, training.wrong_count),
    ),
    "loose-schedule": Pitfall(
        17, "A scheduler never stepped, or stepped per batch; accumulation that steps on the first batch alone",
        "public solutions",
        wrong=training.never_stepped, right=fit, check=training.check_loop,
        effect=training.loop_effect,
        variants=(training.stepped_per_batch, training.first_batch_alone),
    ),
    "grey-leak": Pitfall(
        18, "A hole encoded as grey changes the known tokens around it, through the encoder's receptive field",
        "all solutions: it is the lab's own way",
        wrong=decoding.encode_grey, right=decoding.encode_smooth, check=decoding.check_leak,
        effect=decoding.leak_effect,
    ),
}
"""Name -> pitfall, in the order of their numbers."""
