"""Weights in fewer bits for any torch module: kept and computed with (`quantize`), or simulated (`simulate`).

    from megavrc.quantization.layers import Calibration
    from megavrc.quantization.quantize import quantize
    from megavrc.quantization.simulate import simulate_quantization

    done = quantize(model, "int8", skip=["vision_tower"])
    done = simulate_quantization(model, "awq", "int4", group_size=128, calibration=Calibration("name", samples))

`simulate` changes a module; `rounding`, `scaling`, `gptq` and `sparsity` are its pure functions on tensors.
"""
