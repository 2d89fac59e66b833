//! Building and tagging the node image.

use super::{ACT_SECONDS, ASK_SECONDS, DockerEngine, fault};
use crate::{
    engine::{EngineError, Outcome},
    image::{self, Built, Program, REPOSITORY},
};
use bollard::{
    body_full,
    query_parameters::{BuildImageOptionsBuilder, TagImageOptionsBuilder},
};
use fault::bounded;
use futures_util::StreamExt as _;
use std::time::Duration;

/// Bound of a build: it moves one file of some MB, and the daemon may be busy.
const BUILD_SECONDS: u64 = 300;

impl DockerEngine {
    /// The image of this program, built only if there is none with its hash; tagged by the hash and by
    /// `tags`.
    ///
    /// # Errors
    /// If the daemon cannot build it, or does not answer.
    pub async fn ensure_image(&self, program: &Program, tags: &[&str]) -> Outcome<Built> {
        let reference = program.reference();
        let (id, built) = match self.image_id(&reference).await? {
            Some(id) => (id, false),
            None => {
                self.build(program, &reference).await?;
                let id = self.image_id(&reference).await?;
                (
                    id.ok_or_else(|| EngineError::NotFound(format!("the image {reference}, just built,")))?,
                    true,
                )
            }
        };
        for tag in tags {
            if self.image_id(&format!("{REPOSITORY}:{tag}")).await?.as_ref() != Some(&id) {
                let options = TagImageOptionsBuilder::new().repo(REPOSITORY).tag(tag).build();
                let what = format!("tagging the image as {tag}");
                bounded(&what, ACT_SECONDS, self.docker.tag_image(&reference, Some(options))).await?;
            }
        }
        Ok(Built { reference, id, built })
    }

    /// `None` if there is no such image.
    async fn image_id(&self, reference: &str) -> Outcome<Option<String>> {
        let what = format!("inspecting the image {reference}");
        let asked = bounded(&what, ASK_SECONDS, self.docker.inspect_image(reference)).await;
        Ok(fault::fine_if(asked.map(Some), fault::is_absent, None)?.and_then(|image| image.id))
    }

    async fn build(&self, program: &Program, reference: &str) -> Outcome<()> {
        let what = format!("building the image {reference}");
        let failed = |reason: String| EngineError::Failed { what: what.clone(), reason };
        let context = image::context(program).map_err(|error| failed(error.to_string()))?;
        let options = BuildImageOptionsBuilder::new().t(reference).rm(true).forcerm(true).build();
        let mut progress = self.docker.build_image(options, None, Some(body_full(context.into())));
        let building = async {
            while let Some(step) = progress.next().await {
                let step = step.map_err(|error| fault::from_daemon(&what, error))?;
                if let Some(error) = step.error_detail {
                    return Err(failed(error.message.unwrap_or_default()));
                }
            }
            Ok(())
        };
        tokio::time::timeout(Duration::from_secs(BUILD_SECONDS), building)
            .await
            .unwrap_or_else(|_| Err(EngineError::Timeout { what: what.clone(), seconds: BUILD_SECONDS }))
    }
}
