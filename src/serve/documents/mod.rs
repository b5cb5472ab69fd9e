//! Documents of the interface for programs: OpenAPI for HTTP, AsyncAPI for the WebSockets.

pub(super) fn openapi() -> &'static [u8] {
    include_bytes!("openapi.json")
}

pub(super) fn asyncapi() -> &'static [u8] {
    include_bytes!("asyncapi.json")
}
