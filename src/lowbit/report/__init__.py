"""report - numbers -> tables, pictures, a page, a model card; sees plain data (dicts of text and numbers), no model.

    table      rows on the terminal and in Markdown      pictures   KL against bits, error by layer: PNG and SVG
    page       one self-contained HTML file              card       README.md of a written model folder

A comparison is {"original", "length", "calibration", "samples", "seed", "rows"}; its first row is the original.
A row is {"recipe", "sentence", "bits_per_weight", "bytes", "seconds", "peak_memory", "layers": [{"name", "format", "bits",
"error"}], "texts": {name: {"windows", "perplexity", "kl", "top1", and each with "_se"}}}.
"""
