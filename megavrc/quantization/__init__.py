"""Weights in fewer bits: int8 that saves memory (torchao), and simulated bits for any torch module.

    from megavrc.quantization.layers import Calibration
    from megavrc.quantization.simulate import simulate_quantization

    done = simulate_quantization(model, "awq", "int4", group_size=128, calibration=Calibration("name", samples))

`simulate` changes a module; `rounding`, `scaling`, `gptq` and `sparsity` are its pure functions on tensors.
"""
