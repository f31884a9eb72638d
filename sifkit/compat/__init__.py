"""Which torch, CUDA, driver, GPU and LLaMA-Factory go together: tables, checks, choices."""
