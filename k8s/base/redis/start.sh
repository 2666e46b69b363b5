# Writes the users of this node into memory, their passwords as hashes, and starts the server. So a password may hold
# any character within, and stands on no command line and no disk.
set -eu
umask 077

hashed() {
  printf %s "$1" | sha256sum | cut -d ' ' -f 1
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
refuse_space_around hook-password "$HOOK_PASSWORD"
refuse_space_around sidecar-password "$SIDECAR_PASSWORD"

cat > /run/redis/users.acl <<EOF
user default on nopass resetkeys resetchannels -@all +ping
user hook on #$(hashed "$HOOK_PASSWORD") resetkeys resetchannels -@all ~slots:* ~lease:* ~reservation:* +time +evalsha +script|load +exists +get +set +mget +hget +hset +hdel +hmget +hgetall +pttl +pexpire +unlink
user sidecar on #$(hashed "$SIDECAR_PASSWORD") resetkeys resetchannels -@all %W~lease:* +pexpire (%W~lease:* %W~reservation:* +unlink)
EOF

unset HOOK_PASSWORD SIDECAR_PASSWORD
exec redis-server /etc/redis/redis.conf
