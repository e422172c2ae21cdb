"""The command `python -m benchmarks.stress`: all scripts, one after another."""

from benchmarks.stress import (
    brown_out,
    bulk,
    isolation,
    overload,
    own_trouble,
    rate_limits,
    report,
    tail,
)

if __name__ == "__main__":
    report.main(
        {
            "brown_out": brown_out.measure,
            "overload": overload.measure,
            "rate_limits": rate_limits.measure,
            "isolation": isolation.measure,
            "tail": tail.measure,
            "bulk": bulk.measure,
            "own_trouble": own_trouble.measure,
        }
    )
