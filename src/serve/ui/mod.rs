//! The live page: HTML, CSS and ES modules, compiled in as they are written. The page loads nothing
//! from another host.

use std::sync::LazyLock;

use xxhash_rust::xxh3::xxh3_64;

/// The `Content-Security-Policy` of responses of `/` and `/ui/...`: it allows what the page needs,
/// nothing else.
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

/// Path, content type and bytes of each file.
const PAGE_FILES: [(&str, &str, &[u8]); 21] = [
    ("/", HTML, include_bytes!("index.html")),
    ("/ui/app.js", SCRIPT, include_bytes!("app.js")),
    ("/ui/chart.js", SCRIPT, include_bytes!("chart.js")),
    ("/ui/cities.js", SCRIPT, include_bytes!("cities.js")),
    ("/ui/dots.js", SCRIPT, include_bytes!("dots.js")),
    ("/ui/feed.js", SCRIPT, include_bytes!("feed.js")),
    ("/ui/format.js", SCRIPT, include_bytes!("format.js")),
    ("/ui/freshness.js", SCRIPT, include_bytes!("freshness.js")),
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
    ("/ui/view.js", SCRIPT, include_bytes!("view.js")),
];

static ASSETS: LazyLock<Vec<Asset>> = LazyLock::new(|| {
    let asset = |&(_, content_type, bytes): &(_, _, &'static [u8])| Asset {
        content_type,
        bytes,
        etag: format!("\"{:016x}\"", xxh3_64(bytes)),
    };
    PAGE_FILES.iter().map(asset).collect()
});

/// The file at the path of a request.
pub fn find_asset(path: &str) -> Option<&'static Asset> {
    ASSETS.get(PAGE_FILES.iter().position(|(at, ..)| *at == path)?)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::Path;

    use super::*;

    fn text(path: &str) -> &'static str {
        std::str::from_utf8(find_asset(path).unwrap().bytes).unwrap()
    }

    /// All texts between `before` and `after`.
    fn between<'a>(text: &'a str, before: &str, after: &str) -> Vec<&'a str> {
        text.split(before).skip(1).filter_map(|rest| rest.split(after).next()).collect()
    }

    #[test]
    fn every_page_file_is_served() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/serve/ui");
        for entry in fs::read_dir(folder).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            let path = if name == "index.html" { "/".to_string() } else { format!("/ui/{name}") };
            assert_eq!(find_asset(&path).is_some(), name != "mod.rs", "{path}");
        }
        assert!(
            find_asset("/ui/").is_none() && find_asset("").is_none() && find_asset("/ui/../mod.rs").is_none()
        );
    }

    #[test]
    fn every_path_named_in_page_is_served() {
        let page = text("/");
        for attribute in ["src=\"", "href=\"ui/"] {
            for path in between(page, attribute, "\"") {
                assert!(find_asset(&format!("/ui/{}", path.trim_start_matches("ui/"))).is_some(), "{path}");
            }
        }
        for (path, ..) in PAGE_FILES.iter().filter(|(path, ..)| path.ends_with(".js")) {
            for import in between(text(path), "from './", "'") {
                assert!(find_asset(&format!("/ui/{import}")).is_some(), "{path} imports {import}");
            }
        }
    }

    #[test]
    fn page_complies_with_content_security_policy() {
        let page = text("/");
        for inline in ["<style", " style=", "<script>", " onclick=", " onload=", "javascript:"] {
            assert!(!page.contains(inline), "{inline}");
        }
        for (path, ..) in
            PAGE_FILES.iter().filter(|(path, ..)| path.ends_with(".js") || path.ends_with(".css"))
        {
            // The name of a namespace is not an address.
            let text = text(path).replace("http://www.w3.org/2000/svg", "");
            assert!(!text.contains("http://") && !text.contains("https://"), "{path} names a host");
            assert!(!text.contains("eval(") && !text.contains("innerHTML"), "{path}");
        }
    }

    #[test]
    fn entity_tags_depend_on_content() {
        let tags: BTreeSet<_> = ASSETS.iter().map(|asset| &asset.etag).collect();
        assert_eq!(tags.len(), PAGE_FILES.len());
        assert!(tags.iter().all(|tag| tag.len() == 18 && tag.starts_with('"') && tag.ends_with('"')));
    }
}
