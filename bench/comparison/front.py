"""What the front costs, from pairs of samples: one of vLLM by itself, one through the front."""

import statistics

# Of vLLM's tokens/s, and seconds after vLLM's first token.
LEAST_RATIO, MOST_LATER = 0.97, 0.010
ALONE, FRONT = "vLLM", "front"
HEADER = ["clients", "vLLM tokens/s", "front tokens/s", "ratio", "vLLM first ms", "front first ms", "later by ms", "others", "aims met"]


def spread(values, form):
    return f"{form(statistics.median(values))} ({form(min(values))} to {form(max(values))})"


def summary(clients, pairs):
    """A row of the table: medians, and of ratios and differences the medians of the pairs with the least and the greatest."""
    def of(which, what):
        return [pair[which][what] for pair in pairs]

    ratios = [front / alone for alone, front in zip(of(ALONE, "tokens_per_second"), of(FRONT, "tokens_per_second"))]
    later = [front - alone for alone, front in zip(of(ALONE, "first_token"), of(FRONT, "first_token"))]
    others = max(of(ALONE, "others") + of(FRONT, "others"))
    met = statistics.median(ratios) >= LEAST_RATIO and statistics.median(later) <= MOST_LATER
    return [str(clients), *(f"{statistics.median(of(which, 'tokens_per_second')):.1f}" for which in (ALONE, FRONT)),
            spread(ratios, "{:.3f}".format),
            *(f"{statistics.median(of(which, 'first_token')) * 1000:.1f}" for which in (ALONE, FRONT)),
            spread([seconds * 1000 for seconds in later], "{:+.1f}".format), f"{others:.0%}", "yes" if met else "no"]
