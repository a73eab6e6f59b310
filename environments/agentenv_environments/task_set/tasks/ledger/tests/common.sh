# Reads a small regular file, without its white space; nothing for anything else.
content() {
    if [ -f "$1" ] && [ ! -L "$1" ]; then head -c 200 "$1" | tr -d '[:space:]'; fi
}
