# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""Training: objects, procedural scenes, shards, and the trainer of the mask VAE and the denoiser."""
