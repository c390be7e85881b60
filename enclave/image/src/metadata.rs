//! The metadata section: what built the image. It is not measured, but it is part of the file: no time, no name of a user or
//! a machine is in it.

use serde::Serialize;

/// As `nitro-cli` writes it (aws-nitro-enclaves-image-format, `EifIdentityInfo`).
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Metadata<'a> {
    /// Of the image.
    pub image_name: &'a str,
    /// Of the image.
    pub image_version: &'a str,
    /// What built it.
    pub build_metadata: BuildMetadata<'a>,
    /// No container is involved.
    pub docker_info: serde_json::Value,
    /// Compiler, linker, C library: whatever decides the bytes.
    pub custom_metadata: serde_json::Value,
}

/// `EifBuildInfo`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct BuildMetadata<'a> {
    /// Always 1970: a time would make each build another file.
    pub build_time: &'static str,
    /// This program.
    pub build_tool: &'static str,
    /// Its version.
    pub build_tool_version: &'static str,
    /// From the third line of the kernel's configuration, as AWS's builder takes it.
    pub operating_system: &'a str,
    /// From the same line.
    pub kernel_version: &'a str,
}

impl<'a> BuildMetadata<'a> {
    /// From a kernel's `.config`, whose third line is `# Linux/x86_64 6.12.1 Kernel Configuration`. Without one both are unknown.
    #[must_use]
    pub fn of_kernel(configuration: Option<&'a str>) -> Self {
        let line = configuration.and_then(|text| text.lines().nth(2)).unwrap_or_default();
        let mut words = line.trim_start_matches(['#', ' ']).split(' ');
        let system = words.next().and_then(|word| word.split('/').next()).filter(|word| !word.is_empty());
        Self {
            build_time: "1970-01-01T00:00:00+00:00",
            build_tool: env!("CARGO_PKG_NAME"),
            build_tool_version: env!("CARGO_PKG_VERSION"),
            operating_system: system.unwrap_or("unknown"),
            kernel_version: words.next().unwrap_or("unknown"),
        }
    }
}
