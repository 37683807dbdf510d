"""layers - packed tensors -> modules of a model, and whole models made of them.

Files
    linear                a packed matrix that runs as nn.Linear does
    loading               a model folder -> a model with packed layers
    transformers_plugin   lets AutoModelForCausalLM.from_pretrained load `quant_method: "lowbit"`
    quantizer             the classes that it registers
"""
