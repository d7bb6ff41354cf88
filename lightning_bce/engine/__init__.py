"""Value, sums by label and side, and gradient of a loss in one pass, derived from the formula of an element."""

from lightning_bce.engine.batch import Formula as Formula
from lightning_bce.engine.batch import Inputs as Inputs
from lightning_bce.engine.batch import in_full as in_full
from lightning_bce.engine.batch import known_labels as known_labels
from lightning_bce.engine.batch import sum_dtype as sum_dtype
from lightning_bce.engine.compiler import reason_against as reason_against
from lightning_bce.engine.kernel import KernelError as KernelError
from lightning_bce.engine.kernel import Kernels as Kernels
from lightning_bce.engine.one_pass import Pass as Pass
