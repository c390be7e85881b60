# Packages of the distribution, through an apt state of our own. Sourced, not run.
#
# The sources are those that this machine already trusts (its mirrors, its signing keys); only the suite is ours
# to choose, so that a package of another release of Debian can be read without a change to the machine.

# The cache of everything that takes minutes to build and does not depend on the checkout.
subrosa_cache() {
    printf '%s\n' "${SUBROSA_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/subrosa}"
}

note() {
    printf '%s: %s\n' "$(basename "$0")" "$*" >&2
}

fail() {
    note "$*"
    exit 1
}

# The name of the release that runs here, for example bookworm.
release_here() {
    # shellcheck disable=SC1091
    (. /etc/os-release && printf '%s\n' "${VERSION_CODENAME:-unknown}")
}

# Writes an apt state into folder $1 that knows release $2 (with its security and, where there is one, its backports suite),
# and fetches its lists. Use it by APT_CONFIG=$1/apt.conf.
apt_state() {
    local into=$1 release=$2 here
    here=$(release_here)
    mkdir -p "$into/sources" "$into/lists/partial" "$into/cache/archives/partial"
    cat >"$into/apt.conf" <<CONF
Dir::Etc::SourceList "/dev/null";
Dir::Etc::SourceParts "$into/sources";
Dir::State::Lists "$into/lists";
Dir::Cache "$into/cache";
APT::Sandbox::User "root";
Acquire::Retries "3";
CONF
    { stanzas; one_liners; } | while IFS=$'\t' read -r uri suite key; do
        case "$suite" in
        "$here-security") suite="$release-security" ;;
        "$here") suite="$release $release-updates" ;;
        *) continue ;;
        esac
        printf 'Types: deb deb-src\nURIs: %s\nSuites: %s\nComponents: main\n' "$uri" "$suite"
        [ -z "$key" ] || printf 'Signed-By: %s\n' "$key"
        printf '\n'
    done >"$into/sources/all.sources"
    [ -s "$into/sources/all.sources" ] ||
        fail "no Debian sources for '$here' in /etc/apt: this needs a Debian machine with apt, release bookworm or later"
    APT_CONFIG="$into/apt.conf" apt-get update --quiet=2 >&2 || fail "apt-get update failed for release $release"
}

# URI, suite, key of each deb822 stanza of this machine, one suite a line.
stanzas() {
    { cat /etc/apt/sources.list.d/*.sources 2>/dev/null || true; } | awk -v RS= '
        { uri = suites = key = ""; n = split($0, lines, "\n")
          for (i = 1; i <= n; i++) {
              if (lines[i] ~ /^#/) continue
              name = value = lines[i]; sub(/:.*/, "", name); sub(/^[^:]*:[ \t]*/, "", value)
              if (name == "URIs") uri = value
              if (name == "Suites") suites = value
              if (name == "Signed-By") key = value
          }
          split(uri, uris, " "); m = split(suites, each, " ")
          for (i = 1; i <= m; i++) print uris[1] "\t" each[i] "\t" key }'
}

# The same of the lines in sources.list.
one_liners() {
    { cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list 2>/dev/null || true; } | awk '
        $1 == "deb" { key = ""
            if (match($0, /\[[^]]*\]/)) {
                options = substr($0, RSTART + 1, RLENGTH - 2)
                $0 = substr($0, 1, RSTART - 1) substr($0, RSTART + RLENGTH)
                n = split(options, each, " ")
                for (i = 1; i <= n; i++) if (sub(/^signed-by=/, "", each[i])) key = each[i]
            }
            print $2 "\t" $3 "\t" key }'
}

# Installs what is missing of the packages named, when root; else names them. $1 is the apt state.
need_packages() {
    local state=$1 missing=() package
    shift
    for package in "$@"; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q '^install ok installed$' || missing+=("$package")
    done
    [ ${#missing[@]} -eq 0 ] && return 0
    [ "$(id -u)" -eq 0 ] || fail "missing packages; run: sudo apt-get install ${missing[*]}"
    note "installing ${missing[*]}"
    [ -e "$state/apt.conf" ] || apt_state "$state" "$(release_here)"
    APT_CONFIG="$state/apt.conf" DEBIAN_FRONTEND=noninteractive \
        apt-get install --quiet=2 --yes --no-install-recommends -o Dpkg::Use-Pty=0 "${missing[@]}" >/dev/null ||
        fail "apt-get could not install: ${missing[*]}"
}
