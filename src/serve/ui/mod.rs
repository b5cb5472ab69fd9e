//! The live page: HTML, CSS and ES modules as they are written, compiled in. Nothing is fetched from another host.

use std::sync::LazyLock;

use xxhash_rust::xxh3::xxh3_64;

/// What the page needs, and all that it may do: a response of `/` or `/ui/...` carries it as `Content-Security-Policy`.
pub const CONTENT_SECURITY_POLICY: &str =
    "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// A file of the page.
pub struct Asset {
    pub content_type: &'static str,
    pub bytes: &'static [u8],
    /// A strong entity tag, quotes included.
    pub etag: String,
}

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const JSON: &str = "application/json";
const SVG: &str = "image/svg+xml";

/// By path.
const FILES: [(&str, &str, &[u8]); 18] = [
    ("/", HTML, include_bytes!("index.html")),
    ("/ui/app.js", SCRIPT, include_bytes!("app.js")),
    ("/ui/chart.js", SCRIPT, include_bytes!("chart.js")),
    ("/ui/cities.js", SCRIPT, include_bytes!("cities.js")),
    ("/ui/feed.js", SCRIPT, include_bytes!("feed.js")),
    ("/ui/format.js", SCRIPT, include_bytes!("format.js")),
    ("/ui/icon.svg", SVG, include_bytes!("icon.svg")),
    ("/ui/land.json", JSON, include_bytes!("../../../data/land110m.json")),
    ("/ui/lists.js", SCRIPT, include_bytes!("lists.js")),
    ("/ui/map.js", SCRIPT, include_bytes!("map.js")),
    ("/ui/palette.js", SCRIPT, include_bytes!("palette.js")),
    ("/ui/panel.js", SCRIPT, include_bytes!("panel.js")),
    ("/ui/parts.css", CSS, include_bytes!("parts.css")),
    ("/ui/projection.js", SCRIPT, include_bytes!("projection.js")),
    ("/ui/requests.js", SCRIPT, include_bytes!("requests.js")),
    ("/ui/series.js", SCRIPT, include_bytes!("series.js")),
    ("/ui/style.css", CSS, include_bytes!("style.css")),
    ("/ui/theme.js", SCRIPT, include_bytes!("theme.js")),
];

static ASSETS: LazyLock<Vec<Asset>> = LazyLock::new(|| {
    let asset = |&(_, content_type, bytes): &(_, _, &'static [u8])| Asset {
        content_type,
        bytes,
        etag: format!("\"{:016x}\"", xxh3_64(bytes)),
    };
    FILES.iter().map(asset).collect()
});

/// The file at a path as it is in the request.
pub fn asset(path: &str) -> Option<&'static Asset> {
    ASSETS.get(FILES.iter().position(|(at, ..)| *at == path)?)
}
