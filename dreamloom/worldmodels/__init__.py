"""The World protocol, latent actions, dynamics, Genie, bundles."""
