"""The modules of `wandb.sdk` that code refers to, such as `wandb.sdk.wandb_run.Run`."""
