//! Builders of columns that are lists of structures.

use std::sync::Arc;

use arrow_array::builder::{
    ArrayBuilder, Float64Builder, Int32Builder, Int64Builder, ListBuilder, StringBuilder, StructBuilder,
    TimestampMillisecondBuilder, UInt32Builder,
};
use arrow_schema::{DataType, Field, Fields};
use parquet::errors::ParquetError;

/// The field of a list's items.
pub(super) fn list_item(fields: Fields) -> Arc<Field> {
    Arc::new(Field::new("item", DataType::Struct(fields), false))
}

/// A builder of lists of structures with these fields.
pub(super) fn list_builder(fields: Fields) -> ListBuilder<StructBuilder> {
    let builder = |field: &Arc<Field>| -> Box<dyn ArrayBuilder> {
        match field.data_type() {
            DataType::Int32 => Box::new(Int32Builder::new()),
            DataType::UInt32 => Box::new(UInt32Builder::new()),
            DataType::Int64 => Box::new(Int64Builder::new()),
            DataType::Float64 => Box::new(Float64Builder::new()),
            DataType::Utf8 => Box::new(StringBuilder::new()),
            kind => Box::new(TimestampMillisecondBuilder::new().with_data_type(kind.clone())),
        }
    };
    let builders = fields.iter().map(builder).collect();
    ListBuilder::new(StructBuilder::new(fields.clone(), builders)).with_field(list_item(fields))
}

/// Appends a value to field `at` of a structure.
pub(super) fn push_field<B: ArrayBuilder>(
    row: &mut StructBuilder,
    at: usize,
    push: impl FnOnce(&mut B),
) -> Result<(), ParquetError> {
    row.field_builder(at)
        .map(push)
        .ok_or_else(|| ParquetError::General(format!("field {at} is of another type")))
}
