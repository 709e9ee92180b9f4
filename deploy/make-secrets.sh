#!/bin/sh
# Writes random development secrets for docker-compose.yml to deploy/secrets/. A file that exists is
# left as it is, so this is safe to run again and your own secrets stay.
set -eu

folder=$(dirname "$0")/secrets
mkdir -p "$folder"

# Compose mounts each file with its owner and mode. The container's user is nobody here, so the files
# are readable by all and the folder, which is not mounted, keeps everybody else on this machine out.
chmod 700 "$folder"

write() {
    file=$folder/$1
    if [ -e "$file" ]; then
        echo "kept  $file"
        return
    fi
    (umask 077 && printf %s "$2" > "$file.new")
    chmod 644 "$file.new"
    mv "$file.new" "$file"
    echo "wrote $file"
}

random_hex() { od -An -N32 -tx1 /dev/urandom | tr -d ' \n'; }

write github "$(random_hex)"
write demo "$(random_hex)"
# Standard Webhooks writes a signing key as base64 behind this prefix.
write callback "whsec_$(head -c 32 /dev/urandom | base64 | tr -d '\n')"
