# The key agent of a host: opens and makes node keys. It cannot destroy, rotate or read a key's versions.
path "transit/encrypt/shredlake-root"         { capabilities = ["update"] }
path "transit/decrypt/shredlake-root"         { capabilities = ["update"] }
path "transit/hmac/shredlake-secret/sha2-256" { capabilities = ["update"] }

# A snapshot brings destroyed keys back: nobody of ours takes or restores one.
path "sys/storage/raft/snapshot*"             { capabilities = ["deny"] }
