//! The modules of the program, for its own tests, benches and fuzz targets. Nothing here is stable.

pub mod admission {
    pub use crate::admission::*;
}
pub mod checkpoint {
    pub use crate::checkpoint::*;
}
pub mod codec {
    pub use crate::codec::*;
}
pub mod config {
    pub use crate::config::*;
}
pub mod dataflow {
    pub use crate::dataflow::*;
}
pub mod directory {
    pub use crate::directory::*;
}
#[cfg(fuzzing)]
pub mod fuzzing {
    pub use crate::fuzzing::*;
}
pub mod kafka {
    pub use crate::kafka::*;
}
pub mod model {
    pub use crate::model::*;
}
pub mod registry {
    pub use crate::registry::*;
}
pub mod run {
    pub use crate::run::*;
}
pub mod serve {
    pub use crate::serve::*;
}
pub mod sinks {
    pub use crate::sinks::*;
}
pub mod sources {
    pub use crate::sources::*;
}
