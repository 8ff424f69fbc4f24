"""Every architecture pre-trained on PSSL labels and fine-tuned on CamVid-11, by the same commands."""
