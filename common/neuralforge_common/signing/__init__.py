"""Who made an adapter, and whether it is still what they made: OpenSSF model-signing (OMS) bundles, without a network.

manifest   every file of a folder and its SHA-256
statement  a manifest as an in-toto statement, the text that is signed
envelope   that text and its signature: DSSE in a Sigstore bundle, `model.sig`
keys       P-256 and Ed25519
trust      the keyring: whose keys are believed, for which team, until when
sign       folder → model.sig         verify   folder with model.sig → who signed it, or the step that failed
"""
