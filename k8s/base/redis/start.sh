# Writes the users of this node into memory, their passwords as hashes, and starts the server. So a password may hold
# any character within, and stands on no command line and no disk.
set -eu
umask 077

# The hash of each of these passwords that is not empty, as an ACL takes them.
hashed() {
  for password; do
    [ -z "$password" ] || printf '#%s ' "$(printf %s "$password" | sha256sum | cut -d ' ' -f 1)"
  done
}

refuse_space_around() {
  case $2 in
  [[:space:]]* | *[[:space:]])
    echo "cannot start: $1 begins or ends with white space, which the webhook would leave out" >&2
    exit 1
    ;;
  esac
}

: "${HOOK_PASSWORD:?is empty; give the Secret redis-credentials a hook-password}"
: "${SIDECAR_PASSWORD:?is empty; give the Secret redis-credentials a sidecar-password}"
# Besides, while passwords are being changed, one more for each; how to, is in docs/operations.md.
: "${HOOK_PASSWORD_ALSO:=}" "${SIDECAR_PASSWORD_ALSO:=}"
refuse_space_around hook-password "$HOOK_PASSWORD"
refuse_space_around hook-password-also "$HOOK_PASSWORD_ALSO"
refuse_space_around sidecar-password "$SIDECAR_PASSWORD"
refuse_space_around sidecar-password-also "$SIDECAR_PASSWORD_ALSO"

# As `default` a server reads its own log when it starts, and many versions drop what that user may not do, without a
# word. So it may do everything, and nobody can be it.
cat > /run/redis/users.acl <<EOF
user default off resetpass ~* resetchannels +@all
user probe on nopass resetkeys resetchannels -@all +ping
user hook on $(hashed "$HOOK_PASSWORD" "$HOOK_PASSWORD_ALSO")resetkeys resetchannels -@all ~slots:* ~lease:* ~reservation:* +time +evalsha +script|load +exists +get +set +mget +hget +hset +hdel +hmget +hgetall +pttl +pexpire +unlink +scan +info +config|get
user sidecar on $(hashed "$SIDECAR_PASSWORD" "$SIDECAR_PASSWORD_ALSO")resetkeys resetchannels -@all %W~lease:* +pexpire (%W~lease:* %W~reservation:* +unlink)
EOF

unset HOOK_PASSWORD HOOK_PASSWORD_ALSO SIDECAR_PASSWORD SIDECAR_PASSWORD_ALSO
exec redis-server /etc/redis/redis.conf
