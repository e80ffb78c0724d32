"""The verify side of trust, in pieces; `signing.trust_store` is the front that other rooms import."""
