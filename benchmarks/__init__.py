"""The peers side by side in one run: `scripts/bench` prepares and runs everything, all of it on loopback.

`workloads` and `systems` are the two tables, `goals` what their figures are held to. `environments` installs,
`upstreams` and `servers` start processes, `load` drives wrk, `measure` turns one load into figures, `interleave` runs
them A B C A B C, `report` writes RESULTS.md.
"""
