"""gemma3 - Gemma 3 with its eye (4B, 12B, 27B): the text layers of gemma3_text inside a wrapper; the eye stays as it is.

Traps  Files name the parts by the old class (language_model.model, vision_tower.vision_model); sizes and heads stand in the
       config's `text_config`.
"""

from dataclasses import replace

from lowbit.architectures._decoder import POST_NORM, decoder

ARCHITECTURE = replace(
    decoder(second="pre_feedforward_layernorm", offset=1.0, fixed=POST_NORM),
    blocks="model.language_model.layers",
    embed="model.language_model.embed_tokens",
    norm="model.language_model.norm",
    renames=(
        (r"^language_model\.lm_head\.", "lm_head."),
        (r"^language_model\.model\.", "model.language_model."),
        (r"^vision_tower\.(vision_model\.)?", "model.vision_tower."),
        (r"^multi_modal_projector\.", "model.multi_modal_projector."),
    ),
    notes="The vision tower and its projector are left in full precision.",
)
