"""BitFit."""

from functools import partial

from fusionbench.adapt.base import Adaptation
from fusionbench.adapt.sites import wrap
from fusionbench.encoders.base import Encoder
from fusionbench.errors import UserError
from fusionbench.layers.output_affine import OutputShift, is_affine_site
from fusionbench.layers.per_view import PerView
from fusionbench.registry import register


@register
class BitFit(Adaptation):
    """Every bias is trained and nothing else (arXiv 2106.10199): those of linear layers, convolutions and norms.

    102,912 parameters on a ViT-B, CLIP (``norm_pre`` has a bias, the patch convolution none) and DINOv2 (the reverse)
    alike; with a head for 4 classes 105,988, published 106 K. Ours: what is trained is each view's difference to the
    pretrained bias, so that views share one base; weight decay therefore pulls towards the pretrained biases and not
    towards zero. It serves CNNs too, whose frozen batch norms keep their running statistics.
    """

    def apply(self, encoder: Encoder, views: int) -> None:
        """Freeze the encoder and put a shift behind every module that has a bias.

        Raises:
            UserError: There is no bias, or one that is no plain addition at a module's end.
        """
        encoder.requires_grad_(False)
        own = tuple(f"{name}." for name, module in encoder.named_modules() if isinstance(module, PerView))
        biases = [n for n, _ in encoder.named_parameters() if n.rpartition(".")[2] == "bias" and not n.startswith(own)]
        sites = [name.removesuffix("bias").rstrip(".") for name in biases]
        if not sites:
            raise UserError(f"{type(encoder).__name__} has no biases for 'bitfit'; choose adapt: frozen or full")
        for site in sites:
            module = encoder.get_submodule(site)
            if not site or not is_affine_site(module):
                raise UserError(
                    f"'bitfit' cannot train the bias of {type(module).__name__} '{site}', since more than the bias "
                    "comes after it there; choose another encoder, or adapt: frozen or full"
                )
            wrap(encoder, site, partial(OutputShift, views=views, selector=encoder.selector))
        encoder.embeds_by_view = True
