"""The whole model and its batch calls."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self, get_args

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from taste_grpc.errors import CheckpointError, InvalidInputError
from taste_grpc.model.abort import AbortCheck, never_abort
from taste_grpc.model.audio_tower.extraction import ExtractedCodes, SpokenClips, extract_in_pieces
from taste_grpc.model.audio_tower.pieces import Pieces, drain
from taste_grpc.model.audio_tower.tower import AudioTower, AudioTowerOutput
from taste_grpc.model.audio_tower.transfer import transfer_codes, word_start_mapping
from taste_grpc.model.checkpoint.loading import SafetensorsSource, load_into, read_json
from taste_grpc.model.checkpoint.pretrained import (
    check_attention,
    load_asr_tokenizer,
    resolve_checkpoint,
    resolve_device,
    resolve_dtype,
)
from taste_grpc.model.config import TasteConfig
from taste_grpc.model.speech_decoder.decoder import SpeechDecoder
from taste_grpc.model.speech_decoder.inputs import DecoderInputs, SpokenWords, decoder_inputs
from taste_grpc.model.speech_decoder.unit_sampler import UnitSampler
from taste_grpc.model.spoken_lm.completion import (
    ConditionalMode,
    check_single,
    completion_prompt,
    speech_outputs,
    text_outputs,
)
from taste_grpc.model.spoken_lm.generation import GeneratedText, first_taste_rows, generate_all, predicted_taste_rows
from taste_grpc.model.spoken_lm.network import SpokenLM
from taste_grpc.model.spoken_lm.sampler import SamplingParams, SeededDraws
from taste_grpc.model.text.tokens import TextTokenizer
from taste_grpc.model.text.whisper_ids import WhisperSpecialIds
from taste_grpc.model.text.words import WordTokens, words_of

_LLAMA = "spoken_lm.language_model.base_model.model."
_TIES = {_LLAMA + "lm_head.weight": _LLAMA + "model.embed_tokens.weight"}
# stored in bfloat16 by the published checkpoint; everything else stays float32 at every dtype
_REDUCED = ("audio_tower.audio_joint_encoder_segmenter.", "spoken_lm.language_model.")


class TasteForCausalLM(nn.Module):
    """TASTE: audio tower, spoken LM and speech decoder. The voice generator is the processor's.

    The module holds weights only; every call brings its own state, so calls do not disturb each other.
    Its methods may be called from any one thread at a time.
    """

    def __init__(self, config: TasteConfig) -> None:
        super().__init__()
        self.config = config
        self.audio_tower = AudioTower(config.audio_tower)
        self.speech_decoder = SpeechDecoder(config.speech_decoder)
        self.spoken_lm = SpokenLM(config.spoken_lm)
        self.whisper_ids: WhisperSpecialIds | None = None
        self.directory: Path | None = None

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        *,
        attn_implementation: str = "sdpa",
        device: str | int | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        show_progress: bool | None = None,
    ) -> Self:
        """Load a checkpoint in the published layout.

        Args:
            model: a directory or a hub id.
            attn_implementation: `sdpa` or `eager`.
            device: `auto` (CUDA when there is one), `cpu`, `cuda`, `cuda:N` or an index.
            dtype: of Whisper and Llama, as the checkpoint stores them in bfloat16: `auto` (bfloat16 on
                CUDA, float32 on the CPU), `bfloat16`, `float16` or `float32`. All other parts are float32.
            show_progress: None shows a bar on a terminal only.

        Raises:
            CheckpointError: something is missing, damaged or does not fit; one message names the file
                and the tensors.
        """
        check_attention(attn_implementation)
        target = resolve_device(device)
        reduced = resolve_dtype(dtype, target)
        directory = resolve_checkpoint(model)
        published = read_json(directory / "config.json")
        source = SafetensorsSource(directory)
        try:
            taste = cls._on_meta(published, source, attn_implementation)
        except CheckpointError as error:
            raise CheckpointError(
                f"{directory / 'config.json'} and {Path(source.location).name}: {error}"
            ) from error.__cause__
        whisper_ids = WhisperSpecialIds.from_tokenizer(load_asr_tokenizer(directory, published["asr_config"]))
        load_into(
            taste,
            source,
            device=target,
            dtype_of=lambda name: reduced if name.startswith(_REDUCED) else torch.float32,
            ties=_TIES,
            show_progress=show_progress,
            description="loading TASTE",
        )
        taste.whisper_ids = whisper_ids
        taste.directory = directory
        taste.to(target)  # rotary tables and other computed buffers
        return taste.eval()

    @classmethod
    def _on_meta(cls, published: dict[str, Any], source: SafetensorsSource, attn_implementation: str) -> Self:
        """The network config.json and the tensors describe, without weights."""
        try:
            config = TasteConfig.from_published(published, source.shapes, attn_implementation)
            with torch.device("meta"):
                return cls(config)
        except CheckpointError:
            raise
        except Exception as error:  # transformers refuses sizes that do not go together in many ways
            reason = " ".join(str(error).split())
            raise CheckpointError(f"config.json describes no usable network: {reason}") from error

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.spoken_lm.device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the language model."""
        return self.spoken_lm.dtype

    @property
    def vq_dim(self) -> int:
        """Codes per word."""
        return self.config.audio_tower.quantizer.quantizers

    @torch.inference_mode()
    def hear(
        self,
        audio_features: Tensor,
        audio_feature_lengths: Tensor,
        asr_token_ids: Tensor,
        asr_token_lengths: Tensor,
        asr_word_ids: Tensor,
        abort: AbortCheck = never_abort,
    ) -> AudioTowerOutput:
        """Run the audio tower; see `AudioTower.in_pieces` for shapes and errors."""
        output: AudioTowerOutput = self.audio_tower(
            audio_features,
            audio_feature_lengths,
            asr_token_ids,
            asr_token_lengths,
            asr_word_ids,
            self._special_ids,
            abort,
        )
        return output

    def extract_vq(
        self,
        asr_token_ids: Tensor,
        asr_token_lengths: Tensor,
        asr_word_ids: Tensor,
        llm_token_ids: Tensor,
        llm_token_lengths: Tensor,
        llm_word_ids: Tensor,
        audio_features: Tensor,
        audio_feature_lengths: Tensor,
        abort: AbortCheck = never_abort,
    ) -> ExtractedCodes:
        """Codes of spoken words, given audio and text; see `SpokenClips`."""
        clips = SpokenClips(
            asr_token_ids,
            asr_token_lengths,
            asr_word_ids,
            llm_token_ids,
            llm_token_lengths,
            llm_word_ids,
            audio_features,
            audio_feature_lengths,
        )
        return drain(self.extract_vq_in_pieces(clips, abort=abort))

    @torch.inference_mode()
    def extract_vq_in_pieces(
        self, clips: SpokenClips, *, rows: int | None = None, abort: AbortCheck = never_abort
    ) -> Pieces[ExtractedCodes]:
        """`extract_vq` in pieces of at most `rows` rows in one layer; None takes whole layers. See `AudioTower`."""
        codes = yield from extract_in_pieces(self.audio_tower, clips, self._special_ids, rows=rows, abort=abort)
        return codes

    @property
    def _special_ids(self) -> WhisperSpecialIds:
        if self.whisper_ids is None:
            raise CheckpointError("the model was built without a Whisper tokenizer; use from_pretrained")
        return self.whisper_ids

    @torch.inference_mode()
    def speak(
        self,
        speaker_embeds: Tensor,
        inputs: DecoderInputs,
        sampler: UnitSampler,
        *,
        previous_units: Sequence[int] = (),
        abort: AbortCheck = never_abort,
    ) -> list[int]:
        """New speech units for an utterance, after `previous_units`. `speaker_embeds` is `[1, 192]`."""
        prompt, _ = self.speech_decoder.build_prompt(
            speaker_embeds.to(self.device),
            inputs.audio_unit_embeds,
            inputs.audio_unit_lengths,
            inputs.asr_token_ids,
            inputs.asr_token_lengths,
            abort,
        )
        return list(self.speech_decoder.decode_units(prompt, sampler, previous_units=previous_units, abort=abort))

    @torch.inference_mode()
    def inference_reconstruction(
        self,
        speaker_embeds: Tensor,
        asr_token_ids: Tensor,
        asr_token_lengths: Tensor,
        asr_word_ids: Tensor,
        audio_features: Tensor,
        audio_feature_lengths: Tensor,
        llm_token_ids: Tensor | None = None,
        llm_token_lengths: Tensor | None = None,
        llm_word_ids: Tensor | None = None,
        *,
        through_spoken_lm: bool = False,
        seed: int = 0,
        greedy_units: bool = False,
        **_: Any,
    ) -> dict[str, Any]:
        """Say again what was heard.

        Args:
            through_spoken_lm: say not the codes that were heard but those the spoken LM predicts for each
                word while it reads the text ids (which must then be given) with the speech before it.
            seed: of the speech units.
            greedy_units: take the most probable unit instead of drawing.

        Returns:
            `speech_token_ids` `[1, N]` and `speech_token_lengths` `[1]`.
        """
        check_single("asr_token_ids", asr_token_ids)
        heard = self.hear(audio_features, audio_feature_lengths, asr_token_ids, asr_token_lengths, asr_word_ids)
        length = int(asr_token_lengths[0])
        inputs = DecoderInputs(
            heard.audio_unit_embeds[:, :length],
            asr_token_lengths.to(self.device),
            asr_token_ids[:, :length].to(self.device),
            asr_token_lengths.to(self.device),
        )
        if through_spoken_lm:
            if llm_token_ids is None or llm_token_lengths is None or llm_word_ids is None:
                raise InvalidInputError("llm_token_ids", "are needed to go through the spoken LM")
            mapping = word_start_mapping(asr_word_ids, llm_word_ids, asr_token_lengths, llm_token_lengths)
            codes = transfer_codes(heard.quantized_indices, mapping.to(self.device))[0, : int(llm_token_lengths[0])]
            rows = predicted_taste_rows(
                self.spoken_lm,
                self.audio_tower.rvq,
                llm_token_ids[0, : len(codes)].tolist(),
                llm_word_ids[0, : len(codes)].tolist(),
                codes,
            )
            tokens = WordTokens(asr_token_ids[0, :length].tolist(), asr_word_ids[0, :length].tolist())
            inputs = self._decoder_inputs(SpokenWords(tokens, tuple(map(tuple, rows))))
        units = self.speak(speaker_embeds, inputs, UnitSampler(seed=seed, greedy=greedy_units))
        return speech_outputs(units)

    @torch.inference_mode()
    def inference_completion(
        self,
        speaker_embeds: Tensor,
        llm_tokenizer: TextTokenizer | PreTrainedTokenizerFast,
        asr_tokenizer: PreTrainedTokenizerFast,
        conditional_mode: ConditionalMode = "audio",
        *,
        llm_token_ids: Tensor | None = None,
        llm_token_lengths: Tensor | None = None,
        llm_word_ids: Tensor | None = None,
        asr_token_ids: Tensor | None = None,
        asr_token_lengths: Tensor | None = None,
        asr_word_ids: Tensor | None = None,
        audio_features: Tensor | None = None,
        audio_feature_lengths: Tensor | None = None,
        instruct_prefix_ids: Sequence[int] = (),
        instruct_suffix_ids: Sequence[int] = (),
        stop_id: int | None = None,
        extra_words: int = 32,
        text_top_p: float = 0.3,
        taste_top_p: float = 0.0,
        text_temperature: float = 0.5,
        repetition_penalty: float = 1.1,
        max_length: int | None = None,
        out_generated_part_only: bool = False,
        seed: int = 0,
        greedy_units: bool = False,
        **_: Any,
    ) -> dict[str, Any]:
        """Go on from nothing (`zero`), from text, from speech (`audio`), or answer speech between two texts
        (`instruct`), and say the outcome.

        Args:
            out_generated_part_only: in audio mode, leave what was heard out of the speech.
            seed: of the text and of the speech units.

        Returns:
            `generated_text`, `llm_token_ids` `[1, N]`, `llm_word_ids` `[1, N]`, `llm_indices` `[1, M, Q]`,
            `decoder_inputs`, `speech_token_ids` `[1, U]` and `speech_token_lengths` `[1]`.
        """
        tokenizer = TextTokenizer.of(llm_tokenizer)
        given = {
            "llm_token_ids": llm_token_ids,
            "llm_token_lengths": llm_token_lengths,
            "llm_word_ids": llm_word_ids,
            "asr_token_ids": asr_token_ids,
            "asr_token_lengths": asr_token_lengths,
            "asr_word_ids": asr_word_ids,
            "audio_features": audio_features,
            "audio_feature_lengths": audio_feature_lengths,
        }
        if conditional_mode not in get_args(ConditionalMode):
            raise InvalidInputError(
                "conditional_mode", f"{conditional_mode!r} is not {', '.join(get_args(ConditionalMode))}"
            )
        needed = {"zero": 0, "text": 1}.get(conditional_mode, len(given))
        for name, value in list(given.items())[:needed]:
            if value is None:
                raise InvalidInputError(name, f"is needed in mode {conditional_mode}")
            check_single(name, value)
        tensors: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        codes = self.extract_vq(**tensors).llm_indices[0] if needed == len(given) else None
        prompt = completion_prompt(
            self.spoken_lm,
            self.audio_tower.rvq,
            conditional_mode,
            tensors,
            codes,
            instruct_prefix_ids,
            instruct_suffix_ids,
        )
        params = SamplingParams(
            text_top_p=text_top_p,
            taste_top_p=taste_top_p,
            text_temperature=text_temperature,
            repetition_penalty=repetition_penalty,
            extra_words=extra_words,
            stop_id=stop_id,
            max_length=max_length,
            stop_completes_word=True,
        )
        generated = generate_all(
            self.spoken_lm,
            self.audio_tower.rvq,
            prompt,
            params,
            tokenizer.sets(self.spoken_lm.vocab_size),
            SeededDraws(seed, self.vq_dim),
        )
        spoken = self._spoken(generated, tokenizer, asr_tokenizer)
        if conditional_mode == "audio" and not out_generated_part_only and codes is not None:
            length = int(tensors["asr_token_lengths"][0])
            before = WordTokens(
                tensors["asr_token_ids"][0, :length].tolist(), tensors["asr_word_ids"][0, :length].tolist()
            )
            spoken = SpokenWords(before, tuple(first_taste_rows(codes.tolist()))) + spoken
        result = text_outputs(generated, tokenizer, self.vq_dim)
        if not spoken.tokens.ids:
            return {**result, **speech_outputs([]), "decoder_inputs": None}
        inputs = self._decoder_inputs(spoken)
        units = self.speak(speaker_embeds, inputs, UnitSampler(seed=seed, greedy=greedy_units))
        return {**result, **speech_outputs(units), "decoder_inputs": inputs}

    def _spoken(
        self, generated: GeneratedText, tokenizer: TextTokenizer, asr_tokenizer: PreTrainedTokenizerFast
    ) -> SpokenWords:
        words = words_of(generated.text_ids, generated.word_ids, tokenizer)
        return SpokenWords.of(words, first_taste_rows(generated.taste_rows), asr_tokenizer)

    def _decoder_inputs(self, spoken: SpokenWords) -> DecoderInputs:
        return decoder_inputs(spoken, self.audio_tower.rvq.output_from_indices, self.device)
