//! A model's file whose header has been read: what it will take is known, and none of it has been taken yet.

use std::io::{self, Read};

use model_header::Plan;

use crate::gguf::{GgufError, Header, TensorInfo};
use crate::model::{LoadError, LoadOptions, Model};

/// The start of a file that comes as a stream, and the rest of the stream. Between [`Opened::read`] and [`Opened::load`] is
/// the time to refuse what does not fit.
pub struct Opened<R> {
    plan: Plan,
    /// The header, and what was read behind it.
    start: Vec<u8>,
    rest: R,
}

impl<R: Read + Send> Opened<R> {
    /// Reads from a file of `bytes` bytes until its header is whole.
    ///
    /// # Errors
    /// A header that is malformed, too long, of a model that this engine does not compute, or of a longer file.
    pub fn read(mut file: R, bytes: usize) -> Result<Self, LoadError> {
        let mut start = Vec::new();
        let plan = loop {
            let before = start.len();
            let more = before.max(FIRST_READ).min(bytes.saturating_sub(before));
            start.reserve_exact(more);
            let read = (&mut file).take(more as u64).read_to_end(&mut start);
            read.map_err(|error| LoadError::Read(error.kind()))?;
            match Header::parse(&start) {
                Err(GgufError::Truncated { .. }) if start.len() > before && start.len() < bytes => {
                    if start.len() >= MAX_HEADER {
                        let (what, limit) = ("bytes of the header", MAX_HEADER as u64);
                        return Err(GgufError::TooMany { what, count: limit + 1, limit }.into());
                    }
                }
                Err(error) => return Err(error.into()),
                Ok(header) if header.file_bytes() > bytes => return Err(past_end(&header, bytes)),
                Ok(header) => break Plan::of(&header)?,
            }
        };
        Ok(Self { plan, start, rest: file })
    }

    /// What loading and answering will take.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Packs the weights as they come.
    ///
    /// # Errors
    /// A file that is malformed, or not one that this engine computes, or that cannot be read; the message names what.
    pub fn load(self, options: &LoadOptions) -> Result<Model, LoadError> {
        let Self { plan: _, start, mut rest } = self;
        let header = Header::parse(&start)?;
        // Between header and tensors may lie a few bytes that are not read yet.
        let begun = start.get(header.data_offset()..).unwrap_or_default();
        let gap = header.data_offset().saturating_sub(start.len());
        io::copy(&mut (&mut rest).take(gap as u64), &mut io::sink()).map_err(|error| LoadError::Read(error.kind()))?;
        Model::assemble(&header, &mut begun.chain(rest), options)
    }
}

fn past_end(header: &Header<'_>, bytes: usize) -> LoadError {
    let past = |(_, info): &(&str, &TensorInfo)| {
        header.data_offset().saturating_add(info.offset).saturating_add(info.bytes) > bytes
    };
    let tensor = header.tensors().find(past).map_or_else(String::new, |(name, _)| name.to_owned());
    GgufError::TensorPastEnd { tensor }.into()
}

/// Five times the header of the largest vocabularies in circulation (some 12 MB).
const MAX_HEADER: usize = 64 << 20;
/// Most headers are longer, because they hold a vocabulary: what is read is doubled until the header is whole.
const FIRST_READ: usize = 1 << 20;
