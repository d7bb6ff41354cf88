"""Many runs, one verdict: does another loss win on my data, and how sure is that?"""

from lightning_bce.comparison.compare import Comparison as Comparison
from lightning_bce.comparison.compare import compare as compare
