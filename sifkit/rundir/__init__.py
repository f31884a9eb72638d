"""The output directory of a training run: what is in it, how far the run came, and what of it may go.

Nothing in it is unpickled: `training_args.bin` and `optimizer.pt` are pickles of whoever made the image.
"""
