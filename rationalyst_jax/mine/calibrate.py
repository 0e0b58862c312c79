"""Which tau gives the wanted precision? Answered on a small set of rationales labeled good or not."""

from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import binomtest


@dataclass(frozen=True)
class LabeledGain:
    """A rationale's gain (nats), and whether a human or an oracle calls the rationale good."""

    gain: float
    good: bool


@dataclass(frozen=True)
class Calibration:
    """What a threshold does to the labeled set: kept of total rationales.

    precision: good among kept, with the lower end of its 95 % Wilson interval;
    recall: kept among good.
    """

    tau: float
    precision: float
    precision_low: float
    recall: float
    kept: int
    total: int


def calibrate(labeled: Sequence[LabeledGain], precision: float) -> Calibration:
    """The smallest tau, among the gains, whose precision on `labeled` is at least `precision`.

    Raises ValueError where no tau reaches it, naming the best there is, or where nothing is labeled good.
    """
    if not 0 < precision <= 1:
        raise ValueError(f"calibrate: precision must be above 0 and at most 1, got {precision}")
    total = len(labeled)
    good = sum(item.good for item in labeled)
    if not good:
        raise ValueError(f"calibrate: none of {total} labeled rationales is good")
    counts: dict[float, tuple[int, int]] = {}  # tau -> kept, good among them
    kept = kept_good = 0
    for item in sorted(labeled, key=lambda item: -item.gain):
        kept += 1
        kept_good += item.good
        # Of equal gains a threshold keeps all or none: the last count stays.
        counts[item.gain] = (kept, kept_good)
    reached = [tau for tau, (kept, kept_good) in counts.items() if kept_good / kept >= precision]
    if not reached:
        tau, (kept, kept_good) = max(counts.items(), key=lambda item: item[1][1] / item[1][0])
        raise ValueError(
            f"calibrate: no tau has precision {precision}; the best is {kept_good / kept:.3f}"
            f" at tau {tau:.3f}, which keeps {kept} of {total}"
        )
    tau = min(reached)
    kept, kept_good = counts[tau]
    low = binomtest(kept_good, kept).proportion_ci(0.95, method="wilson").low
    return Calibration(tau, kept_good / kept, float(low), kept_good / good, kept, total)
