"""recipe - a sentence <-> the plan of a run; holds no weights.

grammar   "awq + gptq(int4-g128)" <-> Recipe
plan      Recipe and the model's linears -> what becomes of each, its bytes, the run's memory and time
target    what becomes of one linear
presets   the sentences that have a name
"""

from lowbit.recipe.grammar import Recipe

__all__ = ["Recipe"]
