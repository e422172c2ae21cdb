"""The command `python -m benchmarks.stress`: all scripts, one after another."""

from benchmarks.stress import brown_out, overload, rate_limits, report

if __name__ == "__main__":
    report.main(
        {
            "brown_out": brown_out.measure,
            "overload": overload.measure,
            "rate_limits": rate_limits.measure,
        }
    )
