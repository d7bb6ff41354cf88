"""The benchmark is made of scripts, which import one another as scripts do: pytest leaves them alone."""

collect_ignore = [
    "contenders.py",
    "heads.py",
    "measuring.py",
    "one_pass.py",
    "report.py",
    "rounds.py",
    "training_overhead.py",
]
