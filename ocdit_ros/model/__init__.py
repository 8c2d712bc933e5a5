# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0

"""OC-DiT (arXiv 2508.04122) in the ten steps of the paper; each names where it is coded. Start with `ocdit.py`.

 1. An image, and for each object N_T rendered templates: `ocdit.TemplateFeatures`, `ocdit.OCDiT.template_features`.
 2. A beta-VAE turns masks into latents of mean 0 and deviation 0.5, and back: `vae.MaskVAE`.
 3. A frozen pretrained backbone gives the features of image and templates: `backbone.Backbone`.
 4. Queries from noisy latents, image features and encodings: `ocdit.OCDiT.query_context`, `embeddings.PatchEncoding`.
 5. Template tokens, and the keys and values made of them: `ocdit.OCDiT.condition`, `blocks.CrossAttention`.
 6. The noise level as a vector: `embeddings.NoiseEmbedding`.
 7. Blocks of cross-attention, self-attention and MLP, each under adaLN-zero: `blocks.Block`.
 8. The output MLP inside EDM's preconditioning, and the loss: `ocdit.OCDiT.denoise`, `edm.denoising_loss`.
 9. Sampling, and decoding of the last latent: `sampler.sample`, `ocdit.OCDiT.confidence`.
10. Ensembles of noises: `sampler.SamplerSettings`; of views, and coarse to fine: room `segment/`.

`config.ModelConfig` holds every size, `checkpoint.load_checkpoint` and `checkpoint.save_checkpoint` the file format.
"""

from ocdit_ros.model.backbone import Backbone, Features
from ocdit_ros.model.checkpoint import CheckpointError, load_checkpoint, read_metadata, save_checkpoint
from ocdit_ros.model.config import ModelConfig
from ocdit_ros.model.ocdit import SAME_LOOK, Conditioning, OCDiT, QueryContext, TemplateFeatures
from ocdit_ros.model.sampler import SamplerSettings, sample
from ocdit_ros.model.vae import MaskVAE

__all__ = [
    "Backbone",
    "CheckpointError",
    "Conditioning",
    "Features",
    "MaskVAE",
    "ModelConfig",
    "OCDiT",
    "QueryContext",
    "SamplerSettings",
    "SAME_LOOK",
    "TemplateFeatures",
    "load_checkpoint",
    "read_metadata",
    "sample",
    "save_checkpoint",
]
