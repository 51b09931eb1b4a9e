"""MDF-MLLM: a U-Net's skips go into a language model's layers by cross-attention, and come back by FiLM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from fusionbench.adapt.frozen import Frozen
from fusionbench.adapt.views import EncoderPool, Views
from fusionbench.encoders.unet import Pyramid, UNet
from fusionbench.errors import UserError, check_number, nearest
from fusionbench.fusion.answers import Answering
from fusionbench.fusion.base import Criterion, Strategy
from fusionbench.fusion.depths import fused_layers
from fusionbench.fusion.question import case_memory, language_model, load_tokenizer, picture_and_text, question
from fusionbench.layers.cross_modal import CrossModal, Fused
from fusionbench.layers.film import FiLM
from fusionbench.layers.present_rows import PresentRows
from fusionbench.layers.segmentation_loss import dice_scores, segmentation_loss
from fusionbench.registry import register
from fusionbench.types import Batch, Output, Problem

_FREEZES = ("unet", "language_model")
_GATE = 0.1


@register
class MDF(Strategy):
    """MDF-MLLM (arXiv 2509.21358): U-Net and vision-language model fused at four depths, in both directions.

    The flow, without a cycle: U-Net encoder → four skips → ``CrossModal`` blocks at four cross-attention layers of the
    language model, shallow skip to shallow layer → answer; and the mean over the prompt's tokens of what leaves each of
    these layers → ``FiLM`` on its skip → U-Net decoder → vessel mask. Losses: cross-entropy of the answer's tokens +
    ``seg_weight`` · (Dice + binary cross-entropy) over the cases that have a mask.

    Known of the paper: ResNet-50 U-Net at 512 pixels, Llama-3.2-11B-Vision-Instruct, skips projected to 4,096, scaled
    cross-attention at layers 3, 18, 28 and 38, FiLM, full fine-tuning. The direction of attention, α, the gate, the
    grid, the form of FiLM, the losses and the prompt are our choices, as is the score: the mean log-likelihood of each
    class's name. Published: 94 % accuracy on 1,305 fundus pictures with text, 60 % without the U-Net (``mllm``), 37 to
    78 % with frozen parts.

    At Llama 3.2 11B and ResNet-50 fusion has 248,536,584 parameters, 217,071,624 in the blocks and 31,464,960 in FiLM.

    Args:
        mask: Which of the data's masks the U-Net learns, e.g. ``vessels``; needs ``encoder.MODALITY.segment``. Null:
            none, and so no FiLM.
        layers: At which of the language model's cross-attention layers, rising, at most as many as skips; fewer take
            the deepest skips. Null: four at the paper's relative places, or all if there are fewer.
        cross: Whether the skips go into the language model.
        film: Whether what it makes of them comes back to the mask decoder.
        query: ``unet``: the skips ask the vision tokens and join what a layer reads; ``vision``: the other way.
        alpha: Where the scale α of the cross-attention starts.
        learn_alpha: Whether α is learned.
        gate: Where the gate g of the joined tokens starts; 0 and 1 stay, closed and open. Null: 0.1. Only with
            ``query: unet``.
        grid: Places to a side to which each skip is averaged.
        heads: Heads of the cross-attention.
        freeze: Of ``unet`` and ``language_model`` what is not trained, whatever the tuning method. What starts at
            random is trained still: the U-Net's mask decoder, and layers that a language model was given afresh, as in
            ``llama_vision``.
        seg_weight: Weight of the mask's loss.
        prompt: What is asked: ``{text}`` stands for the case's text, which an absent one leaves empty, ``{classes}``
            for the list of names. It goes on behind the text, and has a space neither right before it nor at its end.
            Special tokens are spelled, so for Llama 3.2 it begins with ``<|begin_of_text|>``.
        decode: ``likelihood``: the most likely name. ``generate``: beside it, in evaluation, the model writes and its
            text is searched for names; one that names none counts as wrong, as in the paper, or several, as ours.
        max_new_tokens: How many tokens it writes at most.
    """

    modality_count: ClassVar[tuple[int, int | None]] = (2, 2)
    encoders: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "text": ("llama_vision", "mllama"),
        "image": ("unet",),
        "slices": ("unet",),
    }
    score_names: ClassVar[tuple[str, ...]] = ("dice",)
    part_metrics: ClassVar[Mapping[str, str]] = {"unet": "dice", "language_model": "<monitor>"}

    def __init__(
        self,
        problem: Problem,
        pool: EncoderPool,
        *,
        mask: str | None = None,
        layers: Sequence[int] | None = None,
        cross: bool = True,
        film: bool = True,
        query: Literal["unet", "vision"] = "unet",
        alpha: float = 0.1,
        learn_alpha: bool = True,
        gate: float | None = None,
        grid: int = 16,
        heads: int = 8,
        freeze: Sequence[str] = (),
        seg_weight: float = 1.0,
        prompt: str = "Clinical text:\n{text}\nWhich of these is it: {classes}?\nAnswer:",
        decode: Literal["likelihood", "generate"] = "likelihood",
        max_new_tokens: int = 16,
    ) -> None:
        super().__init__(problem)
        check_number("fusion.seg_weight", seg_weight, least=0)
        self.picture, self.text = picture_and_text(problem, "mdf")
        self.mask, self.seg_weight = mask, seg_weight
        tokenizer = load_tokenizer(pool, self.text)
        self.answering = Answering(problem, tokenizer, prompt=prompt, decode=decode, max_new_tokens=max_new_tokens)
        self.views = _views(pool, self.picture, self.text, freeze)
        decoder, unet = language_model(self.views, self.text), self.unet()
        unet.net.requires_grad_("unet" not in freeze)
        _check_cross(cross, query, alpha, learn_alpha, gate)
        _check_mask(mask, unet.segment, problem.modalities[self.picture].instances, cross)
        self.layers = fused_layers(decoder.cross_layers, len(unet.skip_channels), layers)
        self.first = len(unet.skip_channels) - len(self.layers)
        self.blocks, self.films = nn.ModuleDict(), nn.ModuleDict()
        for index, channels in zip(map(str, self.layers), unet.skip_channels[self.first :], strict=True):
            if cross:
                scale = {"alpha": alpha, "gate": _GATE if gate is None else gate}
                self.blocks[index] = CrossModal(
                    decoder.width, channels, heads=heads, grid=grid, query=query, learn_alpha=learn_alpha, **scale
                )
            if film and mask is not None:
                self.films[index] = FiLM(decoder.width, channels)
        self.train()

    def train(self, mode: bool = True) -> MDF:
        """Keep a frozen U-Net encoder in evaluation mode, but not the mask decoder, which is trained still."""
        super().train(mode)
        unet = self.unet()
        for part in (unet.decoder, unet.head) if unet.segment else ():
            part.train(mode and all(p.requires_grad for p in part.parameters()))
        return self

    @property
    def feature_views(self) -> tuple[str, ...]:
        """Return none, since what leaves the language model depends on two modalities."""
        return ()

    def unet(self) -> UNet:
        """Return the U-Net."""
        encoder = self.views.encoder(self.picture)
        assert isinstance(encoder, UNet)
        return encoder

    def forward(self, inputs: Mapping[str, Tensor], present_BM: Tensor) -> Output:
        """Fuse the skips, score the names, and predict the mask and, where they are drawn, maps of attention."""
        with question(self, inputs, present_BM) as asked:
            rows, cases = asked.rows, len(present_BM)
            with rows.alone(self.unet()):
                pyramid = self.unet().pyramid(rows.take(asked.pictures))
            fused = self._fuse([rows.put(skip) for skip in pyramid.skips], asked.seen, asked.shown)
            memories = {i: case_memory(own.tokens, own.bias, cases) for i, own in fused.items()}
            given = (asked.encoder, asked.prompt, asked.memories | memories)
            reading = self.answering(*given, [int(i) for i in self.films])
            answers = self.answering.answers(*given)
        maps = {f"attention/{i}": self._by_case_mean(own.map) for i, own in fused.items() if own.map is not None}
        if self.mask is not None:
            maps[self.mask] = self._segment(pyramid, reading.summaries, rows)
        return Output(reading.logits, diagnostics=self._diagnostics(), maps=maps, answers=answers)

    def losses(self, output: Output, batch: Batch, criterion: Criterion) -> dict[str, Tensor]:
        """Return the cross-entropy of the answer and the weighted loss of the mask.

        Raises:
            UserError: The data have no such mask, or one of another size.
        """
        terms = {"answer": self.answering.loss(output.logits, batch.target, criterion)}
        if self.mask is not None:
            terms["segmentation"] = self.seg_weight * segmentation_loss(*self._masks(self.mask, output, batch))
        return terms

    def scores(self, output: Output, batch: Batch) -> dict[str, Tensor]:
        """Return the mask's Dice score of each case that has one; none where the data have no such mask."""
        if self.mask is None or self.mask not in batch.extras:
            return {}
        return {"dice": dice_scores(*self._masks(self.mask, output, batch))}

    def parts(self) -> dict[str, list[nn.Parameter]]:
        """Return what is trained: U-Net, language model, and what fuses them."""
        language = language_model(self.views, self.text)
        parts = {"unet": _trained(self.unet()), "language_model": _trained(language)}
        inside = {id(p) for own in parts.values() for p in own}
        return {**parts, "fusion": [p for p in _trained(self) if id(p) not in inside]}

    def _fuse(self, skips: Sequence[Tensor], seen_RTD: Tensor, shown_R: Tensor | None) -> dict[int, Fused]:
        """Return what each fused layer reads, by pictures."""
        pairs = zip(self.layers, skips[self.first :], strict=True)
        blocks = ((i, self.blocks[str(i)], skip) for i, skip in pairs if str(i) in self.blocks)
        return {i: block(skip, seen_RTD, shown_R, maps=self.draws) for i, block, skip in blocks}

    def _segment(self, pyramid: Pyramid, summaries: Mapping[int, Tensor], rows: PresentRows) -> Tensor:
        """Let what the language model made of a skip's layer scale and shift that skip; return the mask's logits."""
        skips = list(pyramid.skips)
        for place, index in enumerate(self.layers, start=self.first):
            if index in summaries:
                skips[place] = self.films[str(index)](skips[place], rows.take(summaries[index]))
        with rows.alone(self.unet()):
            return rows.put(self.unet().decode(pyramid._replace(skips=skips)))

    def _by_case_mean(self, maps_RGG: Tensor) -> Tensor:
        """Average over the pictures of a case."""
        return self.by_case(maps_RGG, self.picture).mean(dim=1)

    def _diagnostics(self) -> dict[str, Tensor]:
        """Return α and gate of each block."""
        out = {}
        blocks: Mapping[str, Any] = dict(self.blocks.items())
        for index, block in blocks.items():
            out[f"alpha/{index}"] = block.alpha.detach().squeeze()
            out |= {f"gate/{index}": block.log_gate.detach().exp().squeeze()} if block.query == "unet" else {}
        return out

    def _masks(self, name: str, output: Output, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Return predicted and true masks, and which cases have both picture and mask."""
        if name not in batch.extras:
            known = [key for key in batch.extras if f"{key}/present" in batch.extras]
            raise UserError(f"the data have no mask '{name}', which fusion.mask names{nearest(name, known)}")
        present_B = batch.extras[f"{name}/present"] & batch.present[:, self.names.index(self.picture)]
        return output.maps[name], batch.extras[name], present_B


def _views(pool: EncoderPool, picture: str, text: str, freeze: Sequence[str]) -> Views:
    """Build U-Net and language model, the latter frozen where it is asked for.

    Raises:
        UserError: The pictures have another encoder, or there is no such part.
    """
    if not issubclass(pool.nodes[picture][0], UNet):
        raise UserError(f"modality '{picture}' needs encoder unet, whose skips fusion 'mdf' takes")
    for part in freeze:
        if part not in _FREEZES:
            raise UserError(f"'fusion.freeze' cannot name '{part}'{nearest(part, _FREEZES)}")
    if "language_model" in freeze:  # the U-Net is trained whole whatever the method
        pool = EncoderPool(pool.modalities, pool.nodes, Frozen(), pool.seed)
    return pool.views({picture: picture, text: text})


def _check_mask(mask: str | None, segment: bool, slices: int, cross: bool) -> None:
    """Refuse what the U-Net cannot learn, or a U-Net that learns nothing."""
    if mask is None and segment:
        raise UserError("the U-Net has a mask decoder, but fusion.mask names no mask; name one or give segment=false")
    if mask is None and not cross:
        raise UserError("without fusion.cross and fusion.mask the U-Net has no part in anything; choose fusion=mllm")
    if mask is not None and not segment:
        raise UserError(f"'fusion.mask' is '{mask}', but the U-Net has no mask decoder; give its encoder segment=true")
    if mask is not None and slices != 1:
        raise UserError(f"'fusion.mask' needs one picture to a case, not {slices}; leave it out")


def _check_cross(cross: bool, query: str, alpha: float, learn_alpha: bool, gate: float | None) -> None:
    """Refuse a gate that has no effect, and a cross-attention that has none."""
    if not cross:
        if gate is not None:
            raise UserError(f"'fusion.gate' is {gate:g}, but with fusion.cross=false nothing is gated: leave it out")
        return
    if query == "vision" and gate is not None:
        raise UserError(
            f"'fusion.gate' is {gate:g}, but 'fusion.query: vision' joins no tokens that it could gate: set "
            "fusion.gate=null, or fusion.query=unet"
        )
    if alpha == 0 and not learn_alpha:
        raise UserError(
            "'fusion.alpha' is 0 and not learned, so the cross-attention would never count: give another alpha or "
            "fusion.learn_alpha=true, or leave it out by fusion.cross=false"
        )


def _trained(module: nn.Module) -> list[nn.Parameter]:
    return [p for p in module.parameters() if p.requires_grad]
