# The key agent of a host: opens and makes node keys. It cannot destroy, rotate or read a key's versions.
# The public half of the signing key tells a signed copy of the fence log from a forged one.
path "transit/encrypt/shredlake-root"         { capabilities = ["update"] }
path "transit/decrypt/shredlake-root"         { capabilities = ["update"] }
path "transit/hmac/shredlake-secret/sha2-256" { capabilities = ["update"] }
path "transit/keys/shredlake-sign"            { capabilities = ["read"] }

# A snapshot brings destroyed keys back: nobody of ours takes or restores one.
path "sys/storage/raft/snapshot*"             { capabilities = ["deny"] }
