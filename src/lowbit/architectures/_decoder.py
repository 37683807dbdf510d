"""_decoder - the parts that most decoder layers are made of: stages and folds of attention, of a gated MLP, of experts.

The names are those of transformers: self_attn.{q,k,v,o}_proj, mlp.{gate,up,down}_proj, mlp.experts.N.{gate,up,down}_proj.
"""

from lowbit.architectures import Architecture, Fold

QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
OUT = ("self_attn.o_proj",)
WIDEN = ("mlp.gate_proj", "mlp.up_proj")
NARROW = ("mlp.down_proj",)
WIDEN_EXPERTS = ("mlp.experts.*.gate_proj", "mlp.experts.*.up_proj")
NARROW_EXPERTS = ("mlp.experts.*.down_proj",)

VALUE_FOLD = Fold("self_attn.v_proj", OUT, OUT[0], heads=True)
UP_FOLD = Fold("mlp.up_proj", NARROW, NARROW[0])
UP_FOLD_EXPERTS = Fold("mlp.experts.*.up_proj", NARROW_EXPERTS, NARROW_EXPERTS[0])
POST_NORM = "norms stand between attention and MLP and the sums that they go to"
Renames = tuple[tuple[str, str], ...]
ROUTER = "The router is a bare matrix beside the experts, no linear: it stays in full precision."


def decoder(second: str = "post_attention_layernorm", offset: float = 0.0, fixed: str = "") -> Architecture:
    """The ordinary layer: x + attention(norm(x)), then x + mlp(second norm(x)). offset: see Fold; fixed: see Architecture."""
    return Architecture(
        stages=(QKV, OUT, WIDEN, NARROW),
        folds=(Fold("input_layernorm", QKV, "self_attn", offset), VALUE_FOLD, Fold(second, WIDEN, "mlp", offset), UP_FOLD),
        writers=OUT + NARROW,
        fixed=fixed,
    )


def experts_decoder(renames: Renames = (), published: Renames = ()) -> Architecture:
    """The ordinary layer with experts for the MLP, in all layers or in some; one norm feeds the router and every expert."""
    norm = "post_attention_layernorm"
    return Architecture(
        stages=(QKV, OUT, WIDEN + WIDEN_EXPERTS, NARROW + NARROW_EXPERTS),
        folds=(
            Fold("input_layernorm", QKV, "self_attn"),
            VALUE_FOLD,
            Fold(norm, (*WIDEN_EXPERTS, "mlp.gate"), "mlp"),
            UP_FOLD_EXPERTS,
            Fold(norm, WIDEN, "mlp"),
            UP_FOLD,
        ),
        writers=OUT + NARROW + NARROW_EXPERTS,
        experts="mlp.experts",
        renames=renames,
        published=published,
        notes=ROUTER,
    )
