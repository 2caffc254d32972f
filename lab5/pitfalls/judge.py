"""What the observations of a solution mean: a row for each check, with a verdict that can be trusted.

It fails only on evidence that right code cannot produce; what could not be seen is not tested, with the reason.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from lab5.gamma import gamma
from lab5.pitfalls.standins import STEPS, K
from lab5.pitfalls.verdicts import Row, Verdict

Facts = dict[str, Any]
ENDLESS = "it had not ended in its time"
TEMPERATURES = (1.5, 10.0)  # at which noise on a probability, and on its logarithm, shows whether it shrinks or grows
PASSES, FAILS, CHOICE, NOT_TESTED = Verdict.PASSES, Verdict.FAILS, Verdict.CHOICE, Verdict.NOT_TESTED

LAYERS, MODEL = "models/Transformer/modules/layers.py", "models/VQGAN_Transformer.py"
TRAINING, INPAINTING = "training_transformer.py", "inpainting.py"


class Check(NamedTuple):
    """A check of a solution: the stage that observes it, where its code is, what a failure does, how to mend it."""

    title: str
    pitfall: int
    stage: str
    file: str
    function: str
    meaning: str
    remedy: str


CHECKS: dict[str, Check] = {
    "heads": Check(
        "heads are cut out and joined", 4, "attention", LAYERS, "MultiHeadAttention.forward",
        "A token gets pieces of its neighbours' answers; the network learns around it, with less use of the context.",
        "x.view(B, N, heads, d).transpose(1, 2) for the heads, .transpose(1, 2).reshape(B, N, D) back.",
    ),
    "softmax": Check(
        "softmax over the keys", 5, "attention", LAYERS, "MultiHeadAttention.forward",
        "A query's weights do not sum to 1: tokens are made larger and smaller at random.",
        "scores.softmax(dim=-1), where the last axis is the keys'.",
    ),
    "dropout": Check(
        "no dropout in evaluation", 6, "attention", LAYERS, "MultiHeadAttention.forward",
        "Every picture is made by a network of which a tenth is missing at random.",
        "self.drop = nn.Dropout(p) in __init__ and self.drop(weights) in forward.",
    ),
    "scale": Check(
        "scores are divided by √d", 0, "attention", LAYERS, "MultiHeadAttention.forward",
        "The softmax is too sharp or too flat from the start, and training is slower.",
        "(q @ k.transpose(-2, -1)) * d ** -0.5, d = D / heads.",
    ),
    "gamma": Check(
        "values of the schedules", 0, "gamma", MODEL, "MaskGit.gamma_func",
        "The schedule does not go from all masked to none: every picture depends on it.",
        "cosine: cos(π r / 2), linear: 1 − r, square: 1 − r².",
    ),
    "class axis": Check(
        "the loss takes codes for classes", 7, "training", TRAINING, "TrainTransformer.train_one_epoch",
        "The softmax runs over positions: the network learns where a code is likely, not which code is here.",
        "F.cross_entropy(logits.flatten(0, 1), tokens.flatten()), or logits.transpose(1, 2): classes on axis 1.",
    ),
    "labels": Check(
        "labels and shown tokens", 0, "training", MODEL, "MaskGit.forward",
        "What is to be predicted is not what was hidden.",
        "torch.where(hidden, mask_id, tokens) goes in, tokens are the labels.",
    ),
    "counted": Check(
        "which tokens the loss counts", 8, "training", TRAINING, "TrainTransformer.train_one_epoch",
        "The loss says masked tokens, but counts others: half of it is copying what is shown.",
        "F.cross_entropy(logits[hidden], tokens[hidden]).",
    ),
    "share": Check(
        "share of masked tokens", 9, "training", MODEL, "MaskGit.forward",
        "γ(u) of the tokens is kept in place of hidden: 36 % are masked on average in place of 64 %, and the first "
        "steps of decoding meet what training hardly showed.",
        "Hide the γ(u) N tokens that were drawn: swap the two sides of the mask.",
    ),
    "accumulation": Check(
        "accumulated gradients", 17, "training", TRAINING, "TrainTransformer.train_one_epoch",
        "The first step has seen a single batch, and gradients of the last batches are left for the next epoch.",
        "if (i + 1) % accumulate == 0: optimiser.step(); optimiser.zero_grad().",
    ),
    "rate": Check(
        "the learning rate's schedule", 17, "training", TRAINING, "TrainTransformer.train_one_epoch",
        "The learning rate that was planned is never used.",
        "scheduler.step() once in the unit that the scheduler counts in.",
    ),
    "parameters": Check(
        "all parameters are optimised", 0, "training", TRAINING, "TrainTransformer.configure_optimizers",
        "They keep their random values for ever.",
        "Give the optimiser self.model.transformer.parameters().",
    ),
    "validation mode": Check(
        "validation in evaluation mode", 16, "training", TRAINING, "TrainTransformer.eval_one_epoch",
        "Dropout makes the validation loss too high and noisy: the best epoch is chosen by it.",
        "self.model.eval() before it, self.model.train() after it.",
    ),
    "validation masks": Check(
        "validation on fixed masks", 16, "training", TRAINING, "TrainTransformer.eval_one_epoch",
        "Two epochs are compared on different questions: the noise is larger than what an epoch gains. It is the "
        "template's own way.",
        "Draw the masks of the validation from a generator with one seed: torch.Generator().manual_seed(0).",
    ),
    "validation mean": Check(
        "the validation loss is a mean", 16, "training", TRAINING, "TrainTransformer.eval_one_epoch",
        "The number cannot be compared with others, nor with the training loss.",
        "Divide the sum of the batches' means by the number of batches.",
    ),
    "token mask": Check(
        "from pixels to tokens", 0, "decoding", INPAINTING, "MaskedImage.get_mask_latent",
        "Grey pixels are taken for the picture, or the picture for a hole.",
        "A token is masked if any pixel of its 4x4 block is missing; in the mask's file 0 is missing.",
    ),
    "grey": Check(
        "what is encoded in the hole", 18, "decoding", INPAINTING, "MaskGIT.inpainting",
        "The encoder carries the grey into known tokens around the hole, which costs 2.5 dB. It is the lab's own way.",
        "Fill the hole before encoding, with cv2.inpaint or the mean colour of its edge; its tokens stay masked.",
    ),
    "committed": Check(
        "committed tokens stay", 1, "decoding", INPAINTING, "MaskGIT.inpainting",
        "Committed tokens turn back into what the encoder made of the grey hole: stopping early looks better.",
        "Put back known tokens by the mask of the start, and hand each step the tokens of the step before.",
    ),
    "redrawn": Check(
        "committed tokens are drawn once", 0, "decoding", MODEL, "MaskGit.inpainting",
        "A token that was committed for its confidence is replaced by whatever is drawn later.",
        "tokens = torch.where(mask, drawn, tokens), where mask is what was masked just before this step, not the hole.",
    ),
    "known": Check(
        "known tokens stay", 3, "decoding", MODEL, "MaskGit.inpainting",
        "The face around the hole is drawn anew with every step, so that iterating seems to hurt.",
        "tokens = torch.where(mask, drawn, tokens): what is known is put back at every step.",
    ),
    "order": Check(
        "likely tokens come first", 10, "decoding", MODEL, "MaskGit.inpainting",
        "The order is nearly random, whatever the network knows: iterating gains little.",
        "Noise on log-probabilities, annealed to 0: log p + 4.5 (1 − t/T) g, or a choice_temperature of 0.1.",
    ),
    "annealing": Check(
        "the noise shrinks", 0, "decoding", MODEL, "MaskGit.inpainting",
        "The noise is annealed backwards: the first choices are sure, and the last ones, which see most, are random.",
        "temperature = choice_temperature * (1 - t / T), which ends at 0.",
    ),
    "counts": Check(
        "how many stay masked", 11, "decoding", MODEL, "MaskGit.inpainting",
        "The share is taken of what is masked now and compounds: most of the hole is filled in the first steps.",
        "n = floor(γ(t/T) N) with N the number of masked tokens at the start, counted once before the loop: look at "
        "what inpainting.py hands on for it, too.",
    ),
    "last step": Check(
        "nothing is masked at the end", 12, "decoding", INPAINTING, "MaskGIT.inpainting",
        "Tokens of the last step are drawn but never committed, and the plan is a step late.",
        "ratio = (step + 1) / T with step from 0: the last one is T / T = 1, where γ is 0.",
    ),
    "mask id": Check(
        "the mask id is no class", 13, "decoding", MODEL, "MaskGit.inpainting",
        "A position at which the mask id wins is painted with an arbitrary code, or breaks the look-up.",
        "logits = logits[..., :1024] before the softmax.",
    ),
    "sweet spot": Check(
        "a sweet spot that cannot be", 14, "decoding", INPAINTING, "MaskGIT.inpainting",
        "It does nothing, and gets tabulated as an effect.",
        "if not 1 <= sweet_spot <= total_iter: raise ValueError(…).",
    ),
    "arrives": Check(
        "the schedule's name arrives", 15, "decoding", INPAINTING, "MaskGIT.inpainting",
        "All schedules give one result: what was compared is noise.",
        "Hand args.mask_func on to model.inpainting and take gamma_func(mask_func) there.",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Finding(Row):
    """A row about a solution: `key` names its check, `where` the file and line of the function that it is about."""

    key: str = ""
    where: str = ""


Said = tuple[Verdict, str] | tuple[Verdict, str, dict[str, Any]]  # a verdict, its evidence, and what differs of the row


def findings(facts: Facts, where: Callable[[str, str], str]) -> tuple[Finding, ...]:
    """A row for each of CHECKS. `where(file, function)` is the line at which the function begins, as `file:line`."""
    judges = {"attention": _attention, "gamma": _gamma, "training": _training, "decoding": _decoding}
    rows: dict[str, Said] = {}
    for stage, judge in judges.items():
        seen = facts["stages"].get(stage, {"error": "the process ended before it"})
        keys = [key for key, check in CHECKS.items() if check.stage == stage]
        if set(seen) <= {"error", "type"}:
            rows |= {key: (NOT_TESTED, seen.get("error", "nothing was seen")) for key in keys}
        else:
            rows |= {key: (NOT_TESTED, "it could not be seen") for key in keys} | dict(judge(seen))
    if rows["gamma"][0] is FAILS and rows["share"][0] is FAILS:  # two mistakes that may make one right
        rows["share"] = (NOT_TESTED, rows["share"][1])
    return tuple(_finding(key, *said, place=where) for key, said in ((key, rows[key]) for key in CHECKS))


def _finding(key: str, verdict: Verdict, evidence: str, other: Facts | None = None, *, place: Any) -> Finding:
    check = CHECKS[key]
    texts = {"meaning": check.meaning, "remedy": check.remedy, "pitfall": check.pitfall} | (other or {})
    if verdict is not FAILS:
        texts |= {"meaning": (other or {}).get("meaning", ""), "remedy": "", "pitfall": check.pitfall}
    file, function = texts.pop("place", (check.file, check.function))
    line = place(file, function)
    if verdict is FAILS and line:
        within = f", in {function}" if line != file else ""  # the line is where the function begins
        texts["remedy"] = f"{line}{within}: {texts['remedy']}"
    return Finding(check.title, verdict, evidence, **texts, key=key, where=line)


# --- attention and schedules ----------------------------------------------------------------------------------------


def _attention(seen: Facts) -> Iterator[tuple[str, Said]]:
    groups = {
        "heads": ("heads cut", "heads joined", "shape", "images apart", "permutation", "answers"),  # causes first
        "softmax": ("softmax axis",),
        "dropout": ("two calls agree",), "scale": ("scale",),
    }  # fmt: skip
    for key, names in groups.items():
        rows = [row for row in seen["rows"] if row["check"] in names]
        for name in (FAILS, NOT_TESTED, PASSES):  # the worst of them speaks
            if worst := [row for row in rows if row["verdict"] == name.name]:
                row = min(worst, key=lambda row: names.index(row["check"])) if name is FAILS else worst[0]
                other = {k: row[k] for k in ("meaning", "remedy") if row.get(k)}
                if name is FAILS:
                    other["pitfall"] = row["pitfall"]
                evidence = row["evidence"] if name is not FAILS else "; ".join(
                    one["evidence"] for one in sorted(worst, key=lambda one: one is not row))  # fmt: skip
                yield key, (name, evidence, other)
                break


def _gamma(seen: Facts) -> Iterator[tuple[str, Said]]:
    """The three schedules; others that a solution has are its own affair."""
    at = (0.0, 0.25, 0.5, 0.75, 1.0)
    wrong, right, errors = [], [], []
    for name, values in seen["values"].items():
        if isinstance(values, str):
            errors.append(f"{name}: {values}")
            continue
        expected = [float(gamma(name, x)) for x in at]
        text = f"{name} {_numbers(values)}"
        if max(abs(a - b) for a, b in zip(values, expected, strict=True)) < 0.02:
            right.append(text)
        elif abs(values[0] - 1) > 0.02 or abs(values[-1]) > 0.02 or values != sorted(values, reverse=True):
            wrong.append(f"{text}, should be {_numbers(expected)}")
        else:
            right.append(f"{text}, another curve than {_numbers(expected)}")
    if wrong:
        yield "gamma", (FAILS, "at r = 0, ¼, ½, ¾, 1: " + "; ".join(wrong))
    elif right:
        yield "gamma", (PASSES, "at r = 0, ¼, ½, ¾, 1: " + "; ".join(right))
    else:
        yield "gamma", (NOT_TESTED, "; ".join(errors))


# --- training -------------------------------------------------------------------------------------------------------


def _training(seen: Facts) -> Iterator[tuple[str, Said]]:
    error = seen.get("error") or "it ended"
    keys = [key for key, check in CHECKS.items() if check.stage == "training"]
    if seen["train calls"] < 4:
        yield from ((key, (NOT_TESTED, f"the training hardly began: {error}")) for key in keys)
        return
    yield "share", _share(seen["masks"])
    of_loss = dict(_loss(seen["loss"]))
    yield from of_loss.items()
    broken = of_loss["class axis"][0] is FAILS
    yield "labels", (NOT_TESTED, "the loss is none over the codes") if broken else _labels(seen["masks"], seen["loss"])
    yield "accumulation", _accumulation(seen["steps"], "accum_grad" in seen["options"])
    yield "rate", _rate(seen["steps"], seen.get("val"), seen.get("error", ""))
    if left_out := seen["steps"]["left out"]:
        yield "parameters", (FAILS, f"never in the optimiser: {', '.join(left_out)}")
    elif seen["steps"]["sizes"]:
        yield "parameters", (PASSES, "all that the transformer has")
    if "val" in seen:
        yield from _validation(seen["val"])
    else:
        yield from ((key, (NOT_TESTED, f"no validation was seen: {error}")) for key in keys if key.startswith("val"))


def _share(masks: Facts) -> Said:
    spread = masks["within"] / max(masks["binomial"], 1e-9)
    kind = "exactly so many in a batch" if masks["within"] < 1e-9 else "a coin for each token" if spread < 2 else (
        "another share for each image")  # fmt: skip
    text = f"{masks['mean']:.0%} are masked on average, {masks['low']:.0%} to {masks['high']:.0%}, {kind}"
    by = masks["gamma"]
    if masks["mean"] < 0.005 or masks["mean"] > 0.995:
        return (
            FAILS,
            text,
            {"meaning": "There is nothing to learn from.", "remedy": "Hide some of the tokens, by γ(u)."},
        )
    if by["kept"] >= 4 and by["hidden"] == 0 and by["neither"] == 0 and not masks["linear"]:  # by 1 − r it is no harm
        return FAILS, f"{text}: in {by['kept']} of {masks['batches']} batches 1 − γ(u), should be γ(u)"
    if by["hidden"] >= 4 and by["kept"] == 0:
        return PASSES, f"{text}: γ(u)"
    return CHOICE, text, {"meaning": "Another masking than γ(u) of the tokens, which is no mistake."}


def _labels(masks: Facts, loss: Facts) -> Said:
    if not loss["batches"]:
        return NOT_TESTED, "no gradient came back to the transformer"
    counted = loss["hidden"][0] + loss["known"][0]
    known = max(1, loss["known"][1])
    if masks["wrong ids"]:
        return FAILS, f"hidden tokens are shown as {masks['wrong ids']}, should be {K}"
    if masks["changed"] > 0.5 * known:
        return FAILS, f"{masks['changed']} of {known} known tokens are shown as others", {
            "meaning": "Tokens of different places or pictures are mixed.",
            "remedy": "Keep the batch as the first axis: "
            "tokens.view(B, 256)."}  # fmt: skip
    if not counted:
        return NOT_TESTED, "no token counts"
    if loss["mask labels"] > 0.01 * counted:
        return FAILS, f"the label of {loss['mask labels']} of {counted} tokens is the mask id", {
            "pitfall": 13, "meaning": "The network learns to predict the mask.",
            "remedy": "Labels are the tokens as they "
            "were before masking, or -100 where they do not count."}  # fmt: skip
    if loss["right"] < 0.9 * counted:
        return FAILS, f"{loss['right']} of {counted} labels are the true tokens, should be all", {
            "pitfall": 7, "meaning": "Logits and labels are not side by side: what is learnt is noise.",
            "remedy": "logits.transpose(1, 2), not a view: classes go to axis 1."}  # fmt: skip
    if masks["changed"] > 0:
        return CHOICE, f"{masks['changed']} of {known} known tokens are shown as others"
    return PASSES, f"{loss['right']} of {counted} labels are the true tokens; hidden ones are shown as {K}"


def _loss(loss: Facts) -> Iterator[tuple[str, Said]]:
    classes = loss["classes"]
    value = loss["value"] if loss["value"] is not None else loss["backward"]
    if not loss["batches"] or value is None:
        yield from ((key, (NOT_TESTED, "no loss and no gradient were seen")) for key in ("class axis", "counted"))
        return
    expected, axis = math.log(classes), math.log(256) * 256 / classes
    text = f"a model without opinion loses {value:.3f}, should be {expected:.3f} = ln {classes}"
    if abs(value - axis) < 0.01 or (loss["uneven"] and abs(value / expected - 1) > 0.05):
        yield "class axis", (FAILS, f"{text}; ln(256)·256/{classes} = {axis:.3f} if positions are the classes")
        yield "counted", (NOT_TESTED, "the loss is none over the codes")
        return
    if min(abs(value / math.log(k) - 1) for k in (K, K + 1)) < 0.01:
        yield "class axis", (PASSES, text)
    elif loss["weight"] and abs(value / loss["weight"] / expected - 1) < 0.02:
        yield "class axis", (CHOICE, f"{text}: a sum or share, {value / expected:.3g} times the mean")
    else:
        yield "class axis", (NOT_TESTED, text)
    (inside, hidden), (outside, known) = loss["hidden"], loss["known"]
    evidence = f"{inside} of {hidden} masked and {outside} of {known} known tokens count"
    ignores = loss["ignore"] not in (None, -100) and not loss["ignored"]
    if inside > 0.99 * hidden and outside == 0:
        yield "counted", (PASSES, evidence)
    elif inside > 0.99 * hidden and outside > 0.99 * known and ignores:
        yield "counted", (FAILS, f"{evidence}; no label is the ignore_index {loss['ignore']}")
    elif inside > 0.99 * hidden and outside > 0.99 * known:
        yield (
            "counted",
            (CHOICE, evidence, {"meaning": "The loss on all tokens, which 27 of 29 public solutions take."}),
        )
    elif inside < 0.01 * hidden and outside:
        yield "counted", (FAILS, evidence, {
            "meaning": "The known tokens are to be predicted: the network learns to copy.",
            "remedy": "Count the others: "
            "logits[hidden], tokens[hidden]."})  # fmt: skip
    elif outside == 0:
        yield "counted", (CHOICE, evidence, {"meaning": "Some of the masked tokens are left out."})
    else:
        yield "counted", (CHOICE, evidence)


def _accumulation(steps: Facts, asked: bool) -> Said:
    sizes, cleared = steps["sizes"], steps["since cleared"]
    if len(sizes) < 3:
        return NOT_TESTED, f"the optimiser made {len(sizes)} steps"
    usual = sorted(sizes[1:])[len(sizes) // 2 - 1]
    text = f"batches seen by each step of the optimiser: {_numbers(sizes[:5])} …"
    if cleared[-1] > 2 * sum(sizes[-3:]) / 3 + usual and cleared[-1] > cleared[0] * 2 and cleared == sorted(cleared):
        return FAILS, f"gradients are never cleared: step {len(cleared)} sums {cleared[-1]} batches", {
            "meaning": "Every step follows all gradients since the beginning.", "remedy": "optimiser.zero_grad() after "
            "each step."}  # fmt: skip
    if sum(c < s for c, s in zip(cleared, sizes, strict=True)) > len(sizes) / 2 and usual > 1:
        return FAILS, f"{text}, of which {cleared[1]} counts: gradients are cleared between", {
            "meaning": "Only the last batch before a step counts, the others come to nothing.",
            "remedy": "optimiser.zero_grad() after each step alone."}  # fmt: skip
    if sizes[0] < usual and sizes[0] == 1:
        return FAILS, f"{text}, should be {usual} each"
    if usual == 1 and asked:
        return CHOICE, f"{text}: a step for every batch, whatever --accum-grad says"
    if usual == 1 or len(set(sizes)) == 1:
        return PASSES, text
    return CHOICE, text


def _rate(steps: Facts, val: Facts | None, error: str) -> Said:
    rates, schedulers = steps["rates"], steps["schedulers"]
    if len(rates) < 3:
        return NOT_TESTED, f"the optimiser made {len(rates)} steps"
    text = f"rates from {rates[0]:.2g} over {rates[len(rates) // 2]:.2g} to {rates[-1]:.2g} in {len(rates)} steps"
    if not schedulers:
        return CHOICE, f"{text}: no scheduler"
    epochs = val["calls"] // max(1, val["batches"]) if val else 0
    if all(count <= 0 for _, count, _ in schedulers):
        if error and epochs < 2:
            return NOT_TESTED, f"the first epoch was not over: {error}"
        if steps["in the source"]:
            return NOT_TESTED, f"{text}: it was never stepped, but a line that did not come to be run would step it"
        names = ", ".join(name for name, _, _ in schedulers)
        return FAILS, f"{text}: {names} is made and never stepped"
    for name, count, length in schedulers:
        if epochs < 4 or not length or count <= 0:
            continue
        if length <= epochs and count >= 2 * epochs:
            return FAILS, f"{name} was made for {length} epochs and stepped {count} times in {epochs}; {text}", {
                "meaning": "The rate has run through its curve in the first epochs."}  # fmt: skip
        if count <= epochs and length >= 2 * epochs and abs(length - len(rates)) <= epochs:
            return FAILS, f"{name} was made for {length} steps and stepped {count} times, once an epoch; {text}", {
                "meaning": "The rate hardly leaves the beginning of its curve."}  # fmt: skip
    return PASSES, text


def _validation(val: Facts) -> Iterator[tuple[str, Said]]:
    mode = f"{val['training']} of {val['calls']} calls of the transformer are in training mode, should be 0"
    yield "validation mode", (FAILS if val["training"] else PASSES, mode)
    if val["seen again"]:
        fresh = f"{val['fresh']} of {val['seen again']} images have another mask in another epoch, should be 0"
        yield "validation masks", (FAILS if val["fresh"] else PASSES, fresh)
    else:
        yield "validation masks", (NOT_TESTED, "there was one validation alone")
    if val["ratio"] is None:
        yield "validation mean", (NOT_TESTED, "eval_one_epoch returns no number")
        return
    mean = val["returned"] / val["ratio"]
    text = f"eval_one_epoch returns {val['returned']:.3f}, its batches' losses are {mean:.3f} on average"
    wrong = any(abs(val["ratio"] / other - 1) < 0.02 for n in (2, 4, 8, 16, 32) for other in (n, 1 / n))
    close = abs(val["ratio"] - 1) < 0.02
    yield "validation mean", (PASSES if close else FAILS if wrong else NOT_TESTED, text)


# --- decoding -------------------------------------------------------------------------------------------------------


def plan(schedule: str, hole: int) -> list[float]:
    """γ(t/T) of the hole for t = 1 .. T."""
    return [float(gamma(schedule, t / STEPS)) * hole for t in range(1, STEPS + 1)]


def _decoding(seen: Facts) -> Iterator[tuple[str, Said]]:
    runs, keys = seen["runs"], [key for key, check in CHECKS.items() if check.stage == "decoding"]
    run = next((r for r in runs.values() if r["sweet_spot"] == seen["end"]), runs["cosine"])
    pictures = [p for p in run["pictures"] if p["calls"]]
    if not pictures:
        reason = run.get("error", "the transformer was never asked")
        yield from ((key, (NOT_TESTED, reason)) for key in keys)
        return
    first = pictures[0]
    yield "grey", _grey(first)
    yield "token mask", _token_mask(first)
    if first["final"]:
        yield "committed", _committed(first)
        yield "redrawn", _redrawn(first)
        yield "known", _known(first)
    else:
        reason = run.get("error", "no picture was saved")
        yield from ((key, (NOT_TESTED, reason)) for key in ("committed", "redrawn", "known"))
    yield "counts", _counts(first, "cosine")
    yield "last step", _last_step(first)
    yield "order", _order(runs["order"])
    yield "annealing", _annealing([runs[f"temperature {temperature}"] for temperature in TEMPERATURES])
    yield "mask id", _mask_id(runs["mask id"], run, first)
    yield "sweet spot", _sweet_spot(runs, seen["end"])
    yield "arrives", _arrives(runs)


def masked_after(picture: Facts) -> list[int]:
    """Of each step, as far as it was seen: in the picture of the masks, else in what the next step was given."""
    after, before = picture["masked after"], picture["masked before"]
    if len(after) == picture["calls"]:
        return after
    return before[1:] if any(before) else []


def _grey(picture: Facts) -> Said:
    hole = picture["pixels' hole"]
    text = f"{picture['grey']} of {hole} tokens of the hole are what the encoder makes of grey"
    return (FAILS if picture["grey"] > 0.9 * hole else PASSES), text


def _token_mask(picture: Facts) -> Said:
    if not picture["start"]:
        return NOT_TESTED, "the mask of the start was not seen"
    more, less = picture["start"]
    hole = picture["pixels' hole"]
    known = 256 - hole
    text = f"{hole - less} of {hole} tokens of the hole and {more} of {known} others are masked at the start"
    if less == 0:
        return (CHOICE, f"{text}: a margin") if 0 < more < 0.5 * known else (PASSES if not more else FAILS, text)
    return FAILS, text


def _committed(picture: Facts) -> Said:
    hole, total = picture["in hole"], picture["hole"]
    text = f"{hole['as at the start']} of {total} tokens of the hole are painted as they were encoded at the start"
    if hole["drawn"] >= 0.95 * total:  # by chance one is drawn as it was at the start
        return PASSES, f"{hole['drawn']} of {total} tokens of the hole are painted as they were drawn"
    if hole["as at the start"] > 0.5 * total:
        if picture["committed lost"] > total or hole["drawn last"] > 2:  # by chance a few
            return FAILS, f"{text}, {hole['drawn last']} as they were drawn in the last step", {
                "pitfall": 2,
                "meaning": "Every step is given the tokens of the start: only what the last one draws is seen."
            }  # fmt: skip
        return FAILS, text
    return NOT_TESTED, f"{hole['drawn']} of {total} tokens of the hole are painted as they were drawn; {text}"


def _redrawn(picture: Facts) -> Said:
    if picture["calls"] < 3 or not any(picture["masked before"]):
        return NOT_TESTED, "which tokens were committed when was not seen"
    text = f"tokens were drawn {picture['committed redrawn']} times after they had been committed, should be 0"
    return (FAILS if picture["committed redrawn"] else PASSES), text


def _known(picture: Facts) -> Said:
    (kept, redrawn, total), shown = picture["final"], max(picture["known changed"], default=0)
    if redrawn > 0.02 * total:
        text = f"{redrawn} of {total} known tokens are painted as the network drew them, should be 0"
        if shown or picture["calls"] < 2:
            return FAILS, text
        return FAILS, f"{text}; the transformer is shown them as they were, at every step", {
            "meaning": "The steps keep the known tokens, but the picture is not made of what they keep.",
            "remedy": "The tokens that go to the codebook for the picture must be torch.where(hole, tokens, start).",
            "place": (INPAINTING, "MaskGIT.inpainting")}  # fmt: skip
    if shown > 0.02 * total:
        return FAILS, f"{shown} of {total} known tokens are others in the midst of decoding, should be 0", {
            "meaning": "The hole is filled to fit a face that is not there."}  # fmt: skip
    if kept == total:
        return PASSES, f"all {total} known tokens are kept, at every step"
    return NOT_TESTED, f"{kept} of {total} known tokens are kept, {redrawn} drawn; of others the origin is unknown"


def _counts(picture: Facts, schedule: str) -> Said:
    after, hole = masked_after(picture), picture["hole"]
    if len(after) < 4:
        return NOT_TESTED, "too few masks were seen"
    shares = [float(gamma(schedule, t / STEPS)) for t in range(STEPS + 1)]
    expected = [share * hole for share in shares[1:]]
    floors = [math.floor(e + 1e-9) for e in expected]
    text = f"masked of {hole}: {_numbers(after)}, should be {_numbers(floors[: len(after)])}"
    late = [share * hole for share in shares[:-1]]
    for planned, note in ((expected, ""), (late, ", a step late")):
        if all(abs(a - e) <= 1.5 for a, e in zip(after, planned, strict=False)):
            return PASSES, f"masked of {hole}: {_numbers(after)}{note}"
    for ratios, note in ((shares[1:], ""), (shares[:-1], " from t = 0")):
        compounded, now = [], float(hole)
        for ratio in ratios[: len(after)]:
            now *= ratio
            compounded.append(now)
        steps = zip([hole, *after], after, ratios, strict=False)
        if all(abs(b - a * ratio) <= 1.5 for a, b, ratio in steps):
            return FAILS, f"{text}; each is γ(t/T) of the one before{note}"
    of_all = [(min(hole, share * 256), share * 256) for share in shares[1:]]
    if all(min(abs(a - e) for e in both) <= 2 for a, both in zip(after, of_all, strict=False)):
        return FAILS, f"{text}; each is γ(t/T) of 256", {
            "pitfall": 0, "meaning": "Known tokens are masked, or nothing is committed at first.",
            "remedy": "N is the number of masked tokens at the start."}  # fmt: skip
    return NOT_TESTED, f"{text}; it follows no rule that is known"


def _last_step(picture: Facts) -> Said:
    after = masked_after(picture)
    if picture["calls"] < STEPS or len(after) < STEPS:
        return NOT_TESTED, f"the mask after step {STEPS} was not seen"
    left = after[STEPS - 1]
    text = f"{left} of {picture['hole']} tokens are masked after step {STEPS} of {STEPS}"
    if left == 1:
        return FAILS, f"{text}, should be 0", {
            "meaning": "cos(π/2) is 6e-17 in a computer, and ceil makes a whole token of it: one is never committed.",
            "remedy": "math.floor in place of math.ceil, where the tokens to be masked are counted.",
            "place": (MODEL, "MaskGit.inpainting")}  # fmt: skip
    return (FAILS, f"{text}, should be 0") if left else (PASSES, text)


def _in_halves(run: Facts) -> list[float]:
    """Of pairs of a certain and an uncertain token, how many began with the certain one: in each half of the steps."""
    halves = [[sum(p["order"][half][way] for p in run["pictures"]) for way in (0, 1)] for half in (0, 1)]
    return [first / (first + later) for first, later in halves if first + later >= 400]


def _annealing(runs: list[Facts]) -> Said:
    texts = []
    for run, temperature in zip(runs, TEMPERATURES, strict=True):
        shares = _in_halves(run)
        if len(shares) < 2:
            continue
        text = f"with a temperature of {temperature:g} the certain token comes first in {shares[0]:.0%} of the pairs "
        text += f"in the first half of the steps, in {shares[1]:.0%} in the second"
        if shares[0] > shares[1] + 0.08 and shares[0] > FAIR:
            return FAILS, f"{text}, should be in more"
        texts += [text] if shares[1] > SURE else []
    if texts:
        return PASSES, texts[-1]
    return NOT_TESTED, runs[0].get("error", "the order is random at all temperatures")


def _order(run: Facts) -> Said:
    shares = _in_halves(run)
    if not shares:
        return NOT_TESTED, run.get("error", "too few tokens were committed one after the other")
    text = "of a certain and an uncertain token the certain one comes first in " + " and ".join(
        f"{s:.0%}" for s in shares
    )
    text += " of the pairs of the first and second half of the steps" if len(shares) == 2 else " of the pairs"
    if max(shares) < 0.35:
        return (
            FAILS,
            f"{text}, should be nearly all",
            {
                "meaning": "The least certain tokens are committed first.",
                "remedy": "Mask those of the lowest confidence again.",
            },
        )
    if min(shares) < FAIR:
        return FAILS, f"{text}, should be nearly all; by chance 50 %"
    if min(shares) < SURE:
        return NOT_TESTED, f"{text}: between chance and confidence"
    return PASSES, text


FAIR, SURE = 0.70, 0.78  # right code with the most noise: 0.88; on probabilities: 0.60 to 0.67


def _mask_id(run: Facts, sure: Facts, picture: Facts) -> Said:
    pictures = [p for p in run["pictures"] if p.get("tempted")]
    painted = sum(p["tempted"][0] + (p["mask id painted"] > 0) for p in pictures)
    total = sum(p["tempted"][2] for p in pictures)
    right = sum(p["tempted"][1] for p in pictures)
    where = "at positions where the transformer gives the mask id a probability of 60 %"
    if painted:
        return FAILS, f"{where}, {total - right} of {total} tokens are painted as the mask id or code {K - 1}"
    if run.get("error") == ENDLESS and sure["seconds"] < 3:
        return FAILS, f"{where}, decoding does not end: {run['error']}", {
            "meaning": "It draws again until no mask id comes, which it may for ever."}  # fmt: skip
    if "IndexError" in run.get("error", "") and "error" not in sure:
        return FAILS, f"{where}, the look-up breaks: {run['error']}"
    if total and right == total:
        return PASSES, f"{where}, all {total} tokens are codes"
    return NOT_TESTED, run.get("error", f"{where}, {right} of {total} tokens could be traced")


def _sweet_spot(runs: dict[str, Facts], end: int) -> Said:
    silent, refused = [], []
    for t in (STEPS + 1, -1):
        run = runs[f"sweet spot {t}"]
        if "sweet_spot" not in run["options"] and "error" not in run:
            return NOT_TESTED, "inpainting.py has no --sweet-spot"
        done = [p for p in run["pictures"] if p["final"]]
        if done and "error" not in run:
            silent.append(f"t = {t} of {STEPS} takes {done[0]['calls']} steps in silence")
        else:
            refused.append(f"t = {t} of {STEPS} is refused: {run.get('error', 'no picture is written')}")
    half = [p["calls"] for p in runs[f"sweet spot {STEPS // 2}"]["pictures"] if p["calls"]]
    note = f"; t = {STEPS // 2} takes {half[0]} steps" if half and half[0] != STEPS // 2 else ""
    if end != STEPS:
        note += f"; t = {STEPS} writes no picture"
    if silent:
        return FAILS, "; ".join(silent + refused) + note
    return PASSES, "; ".join(refused) + note


def _arrives(runs: dict[str, Facts]) -> Said:
    seen = {}
    for name in ("cosine", "linear", "square"):
        run = runs[name]
        if "mask_func" not in run["options"]:
            return NOT_TESTED, run.get("error", "inpainting.py has no --mask-func")
        pictures = [p for p in run["pictures"] if p["calls"]]
        if pictures and "error" not in run and len(masked_after(pictures[0])) >= 4:
            seen[name] = masked_after(pictures[0])
    if len(seen) < 2:
        return NOT_TESTED, next((r["error"] for r in runs.values() if "error" in r), "too few masks were seen")
    text = "; ".join(f"{name} {_numbers(counts)}" for name, counts in seen.items())
    values = list(seen.values())
    if all(max(abs(a - b) for a, b in zip(values[0], v, strict=False)) <= 1 for v in values[1:]):
        return FAILS, f"masked after each step: {text}; all the same, should differ"
    return PASSES, f"masked after each step: {text}"


def _numbers(values: Any) -> str:
    return " ".join(f"{value:.3g}" for value in values)
