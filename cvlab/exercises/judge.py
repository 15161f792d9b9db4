"""Exercises that answer back: a learner's function is compared with a reference.

The stub in a notebook and its check, in `networks`, `deployment`, `compression` or `speed`,
have the same name. A check calls the learner's function and judges what comes back by `answers`;
it knows the usual mistakes and names them. `cvlab.run.Run.check` prints and stores the outcome.
"""

from collections.abc import Callable

import torch

from cvlab.exercises import compression, deployment, networks, speed
from cvlab.exercises.answers import SEED, NotAttempted, Wrong

CHECKS: dict[str, Callable[[Callable], str]] = {
    check.__name__: check
    for check in (
        *(networks.momentum_step, networks.adam_step, networks.fair_rates),
        *(networks.output_size, networks.blur_pool, networks.same_answer),
        *(networks.interval, networks.multiplications, networks.likeliest_group),
        *(deployment.images_needed, deployment.survivors, deployment.suggest),
        *(deployment.milliseconds, deployment.fold, deployment.to_file),
        *(deployment.to_uint8, deployment.scale_and_zero_point, deployment.fake_quantize),
        *(compression.magnitude_mask, compression.distillation_loss, compression.share_weights),
        *(speed.orthogonalise, speed.training_operations, speed.whitening_filters),
    )
}

TO_DO = "not attempted, it returns nothing. Put your code in place of `...`, run the cell again."


def judge(answer: Callable, seed: int = 0) -> tuple[str, str]:
    """Check a learner's function, named as its exercise: the outcome, and what to say.

    The outcome is one of `cvlab.records.OUTCOMES`. torch's random numbers stay as they were,
    so that an exercise changes nothing in the cells after it. Any other seed than a notebook's 0
    asks also for inputs that no notebook has shown.

    Raises:
        ValueError: there is no exercise of that name.
    """
    name = getattr(answer, "__name__", repr(answer))
    if name not in CHECKS:
        raise ValueError(
            f"There is no exercise {name!r}; keep the stub's name, one of {[*CHECKS]}."
        )
    random_state, before = torch.get_rng_state(), SEED.set(seed)
    try:
        return "solved", CHECKS[name](answer)
    except NotAttempted:
        return "not attempted", TO_DO
    except Wrong as wrong:
        return "wrong", str(wrong)
    finally:
        torch.set_rng_state(random_state)
        SEED.reset(before)
