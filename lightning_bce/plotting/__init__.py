"""Pictures of what a loss does, for files and for the terminal."""

from lightning_bce.plotting.loss_curves import LossCurves as LossCurves
from lightning_bce.plotting.loss_curves import loss_curves as loss_curves
from lightning_bce.plotting.loss_curves import loss_from_text as loss_from_text
from lightning_bce.plotting.loss_curves import loss_spec as loss_spec
from lightning_bce.plotting.loss_curves import plot_losses as plot_losses
from lightning_bce.plotting.loss_curves import text_losses as text_losses
from lightning_bce.plotting.pictures import drawings as drawings
from lightning_bce.plotting.pictures import last_evaluation as last_evaluation
from lightning_bce.plotting.pictures import pictures as pictures
from lightning_bce.plotting.pictures import text_pictures as text_pictures
