# The purge role: closes epochs and signs receipts.
path "transit/encrypt/shredlake-root"         { capabilities = ["update"] }
path "transit/decrypt/shredlake-root"         { capabilities = ["update"] }
path "transit/rewrap/shredlake-root"          { capabilities = ["update"] }
path "transit/keys/shredlake-root"            { capabilities = ["read"] }
path "transit/keys/shredlake-root/rotate"     { capabilities = ["update"] }
path "transit/keys/shredlake-root/config" {
  capabilities        = ["update"]
  allowed_parameters  = { "min_decryption_version" = [], "min_encryption_version" = [] }
}
path "transit/keys/shredlake-root/trim"       { capabilities = ["update"] }
path "transit/hmac/shredlake-secret/sha2-256" { capabilities = ["update"] }
path "transit/sign/shredlake-sign"            { capabilities = ["update"] }
path "transit/keys/shredlake-sign"            { capabilities = ["read"] }

# The backup drill's own root (`shredlake keys drill`).
path "transit/+/shredlake-drill-root"         { capabilities = ["read", "update"] }
path "transit/keys/shredlake-drill-root/+"    { capabilities = ["update"] }
path "transit/hmac/shredlake-drill-secret/sha2-256" { capabilities = ["update"] }

path "sys/storage/raft/snapshot*"             { capabilities = ["deny"] }
