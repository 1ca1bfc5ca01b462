"""Any family that transformers can run, causal or encoder-decoder, on any device, through autograd."""
